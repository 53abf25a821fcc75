"""The console on a socket, inside a loop that is running already.

Live connections never end by themselves, so stopping first closes the hub: every stream finishes its message and ends, then the
server waits a moment for ordinary requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator

import structlog
import uvicorn
from litestar import Litestar

from headrace.core.errors import Unavailable
from headrace.web.app import warn_if_open

log = structlog.get_logger()

GRACE_S = 3


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to whoever runs the loop


async def serve(app: Litestar, host: str, port: int, *, on_started: Callable[[int], None] | None = None) -> None:
    """Serve until cancelled; `on_started` gets the port (that the system chose where 0 was asked for).

    Raises Unavailable when the port is taken.
    """
    listener = _listen(host, port)
    taken = int(listener.getsockname()[1])
    warn_if_open(host, may_change=bool(app.state.may_change))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_S, lifespan="on", server_header=False
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]), name="console")
    try:
        await _first(server.up.wait(), running)
        if server.started:
            log.info("console.started", host=host, port=taken)
            if on_started is not None:
                on_started(taken)
        await asyncio.shield(running)
    finally:
        app.state.room.close()
        app.state.hub.close()
        server.should_exit = True
        if not running.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running, GRACE_S + 2)
        listener.close()
        log.info("console.stopped", host=host, port=taken)


async def _first(event: Coroutine[object, object, object], task: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(event)
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise Unavailable(
            f"the console cannot listen on {host}:{port}: {exc.strerror}",
            hint="set [web] port to a free one, or 0 for any",
            code="web.port",
        ) from exc
    listener.listen(512)
    listener.setblocking(False)
    return listener
