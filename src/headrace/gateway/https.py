"""The HTTPS port: uvicorn's HTTP behind our own TLS, and MQTT where a client upgrades to WebSocket.

uvicorn is given connections, not sockets: it cannot ask for client certificates. What a request needs to know of its
connection stands in `scope["state"]["transport"]`, whose get_extra_info has the client's certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.gateway.listen import BACKLOG
from headrace.gateway.tls import Make

HTTP_REQUESTS_MAX = 1000  # each may hold a message in memory; above it uvicorn answers 503
FIRST_REQUEST_S = 30.0  # from connecting to the end of the first request's headers

TELEMETRY = re.compile(r"/devices/[^/]+(/modules/[^/]+)?/messages/events/?")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Routes:
    """The telemetry that devices post is `telemetry`'s; all else is `rest`'s, where there is one."""

    def __init__(self, telemetry: Asgi, rest: Asgi | None) -> None:
        self._telemetry = telemetry
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = self._rest is None or TELEMETRY.fullmatch(scope["path"])
        await (self._telemetry if mine or self._rest is None else self._rest)(scope, receive, send)


class _Server(uvicorn.Server):
    """uvicorn without its hold on signals: the process belongs to whoever runs the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Connection(HttpToolsProtocol):
    """uvicorn's, with its transport in the state of each request, and a limit on how long the first may take to come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {"transport": transport}
        self._patience = self.loop.call_later(FIRST_REQUEST_S, self._give_up)
        super().connection_made(transport)

    def on_headers_complete(self) -> None:
        self._patience.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self.transport.abort()


class HttpsServer:
    """`app` answers requests; `websocket` makes the protocol that takes over an upgraded connection."""

    def __init__(self, app: Asgi, websocket: Callable[[], asyncio.Protocol]) -> None:
        def upgraded(config: Any, server_state: Any, app_state: Any) -> asyncio.Protocol:
            return websocket()

        self._config = uvicorn.Config(
            app,
            http=_Connection,
            lifespan="off",
            ws=upgraded,  # type: ignore[arg-type]  # it is called as a class would be
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=60,
            limit_concurrency=HTTP_REQUESTS_MAX,
            backlog=BACKLOG,
        )
        self._server = _Server(self._config)

    @property
    def make(self) -> Make:
        """Makes the protocol of one connection, once `run` has begun."""
        return lambda: _Connection(config=self._config, server_state=self._server.server_state, app_state={})

    async def run(self) -> None:
        """Keep uvicorn's own clock going until `stop`; then let requests end, for two seconds at most."""
        await self._server.serve(sockets=[])

    def stop(self) -> None:
        self._server.should_exit = True
