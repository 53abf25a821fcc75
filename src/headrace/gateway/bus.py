"""The bus between the gateway processes of one project: short-lived requests over Unix sockets in `.headrace/run`.

Each process listens on `gateway-N.sock` and dials the others when it has something to say, so one process alone sends nothing.
Nothing here is durable: what must not be lost is in the documents, and the bus only says that it is worth looking. A process
that is gone is simply not there any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog

from headrace.core.errors import HeadraceError, Unavailable

SUFFIX = ".sock"
PATTERN = f"gateway-*{SUFFIX}"
FRAME_BYTES_MAX = 1_048_576
WAITING_BYTES_MAX = 8 * 1_048_576
"""What may wait for a peer that does not read; above it casts to it are dropped and asks fail."""
HANDLING_MAX = 2000
DIAL_TIMEOUT_S = 2.0
PATH_BYTES_MAX = 100  # a Unix socket's address holds little more
CAST, ASK, ANSWER, FAILURE = range(4)
HELLO = "bus.hello"

log = structlog.get_logger()

Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


class Bus:
    """`name` (`gateway-0`, say) is where this process listens; empty: it only asks. `folder` None: there are no others.

    Handlers are registered with `on` before `start`.
    """

    def __init__(self, folder: Path | None = None, name: str = "") -> None:
        self._folder = folder
        self.name = name
        self._handlers: dict[str, Handler] = {}
        self._server: asyncio.Server | None = None
        self._links: dict[str, _Link] = {}  # dialled by us
        self._accepted: set[_Link] = set()
        self._dialling: dict[str, asyncio.Task[_Link]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen: tuple[int, list[str]] = (-1, [])
        self._directory = -1  # a descriptor of `folder`
        self.on(HELLO, self._look_again)

    def on(self, name: str, handler: Handler) -> None:
        """Answer what is called `name`. What the handler raises is the asker's Unavailable; a cast's answer is dropped."""
        self._handlers[name] = handler

    @property
    def alone(self) -> bool:
        return not self.peers()

    def peers(self) -> list[str]:
        """Names of the other processes that listen, living or just died. One `stat` while nothing changes."""
        if self._folder is None:
            return []
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._seen[0]:
                names = sorted(path.name.removesuffix(SUFFIX) for path in self._folder.glob(PATTERN))
                self._seen = (changed, [name for name in names if name != self.name])
        except OSError:
            return []
        return self._seen[1]

    async def start(self) -> None:
        """Listen. Raises Unavailable when the socket cannot be made."""
        if self._folder is None or not self.name:
            return
        path = self._folder / f"{self.name}{SUFFIX}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # of an earlier process by our name
            listener.bind(self._address(path.name))
            path.chmod(0o600)
            listener.setblocking(False)
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: _Link(self, self._accepted), sock=listener
            )
        except OSError as exc:
            listener.close()
            raise Unavailable(f"{path}: {exc}", hint="check the folder's owner", code="bus.unavailable") from exc
        self.cast(HELLO, self.name)  # who looked at the folder within the same tick of its clock did not see us

    async def stop(self) -> None:
        """Leave: nobody finds us any more, what we were asked is not answered."""
        if self._server is not None:
            self._server.close()
            assert self._folder is not None
            with contextlib.suppress(OSError):
                (self._folder / f"{self.name}{SUFFIX}").unlink(missing_ok=True)
        for link in [*self._links.values(), *self._accepted]:
            link.abort()
        owned = [*self._tasks, *self._dialling.values()]
        for task in owned:
            task.cancel()
        await asyncio.gather(*owned, return_exceptions=True)
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def cast(self, name: str, payload: Any) -> None:
        """Tell all peers, as far as they can be told. Never waits."""
        peers = self.peers()
        if not peers:
            return
        frame = _frame(CAST, 0, name, payload)
        for peer in peers:
            link = self._links.get(peer)
            if link is not None:
                link.send(frame)
            else:
                self._spawn(self._dial_and_send(peer, frame))

    async def ask(self, peer: str, name: str, payload: Any, *, timeout_s: float) -> Any:
        """A peer's answer. Raises Unavailable when it is gone, does not answer in time, or failed."""
        try:
            async with asyncio.timeout(timeout_s):
                link = self._links.get(peer) or await self._dial(peer)
                return await link.ask(name, payload)
        except TimeoutError as exc:
            raise Unavailable(f"{peer} did not answer within {timeout_s:g} s", code="bus.timeout") from exc

    # inside

    async def _dial_and_send(self, peer: str, frame: bytes) -> None:
        try:
            link = await self._dial(peer)
        except Unavailable:
            return  # it is gone: there is nobody to tell
        link.send(frame)

    async def _dial(self, peer: str) -> _Link:
        """The link to a peer; those who want one at the same time share it."""
        task = self._dialling.get(peer)
        if task is None:
            task = self._dialling[peer] = asyncio.create_task(self._connect(peer))
            task.add_done_callback(lambda done: self._dialled(peer, done))
        return await asyncio.shield(task)

    def _dialled(self, peer: str, done: asyncio.Task[_Link]) -> None:
        del self._dialling[peer]
        if not done.cancelled():
            done.exception()  # whoever still waits has it; that nobody does is no mistake

    async def _connect(self, peer: str) -> _Link:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                _, link = await asyncio.get_running_loop().create_unix_connection(
                    lambda: _Link(self, None, peer), self._address(f"{peer}{SUFFIX}")
                )
        except (OSError, TimeoutError) as exc:
            raise Unavailable(f"{peer} is gone", hint="its devices connect again", code="bus.gone") from exc
        self._links[peer] = link
        return link

    async def _look_again(self, _: Any) -> None:
        self._seen = (-1, [])

    def _address(self, name: str) -> str:
        """Where a socket is, in few enough bytes: by the folder's descriptor where its path is too long (Linux)."""
        assert self._folder is not None
        path = str(self._folder / name)
        if len(path.encode()) <= PATH_BYTES_MAX:
            return path
        if self._directory < 0:
            self._directory = os.open(self._folder, os.O_RDONLY)
        return f"/proc/self/fd/{self._directory}/{name}"

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self, link: _Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]

    def _received(self, link: _Link, kind: int, number: int, name: str, payload: Any) -> None:
        handler = self._handlers.get(name)
        if handler is None or len(self._tasks) >= HANDLING_MAX:
            if kind == ASK:
                link.send(_frame(FAILURE, number, name, "nobody answers" if handler is None else "too busy"))
            return
        self._spawn(self._handle(link, handler, kind, number, name, payload))

    async def _handle(self, link: _Link, handler: Handler, kind: int, number: int, name: str, payload: Any) -> None:
        try:
            answer = await handler(payload)
        except HeadraceError as exc:
            frame = _frame(FAILURE, number, name, exc.message)
        except Exception:  # one bad request must not end the bus
            log.exception("bus.handler_failed", name=name)
            frame = _frame(FAILURE, number, name, "it failed")
        else:
            frame = _frame(ANSWER, number, name, answer)
        if kind == ASK:
            link.send(frame)


class _Link(asyncio.Protocol):
    """One connection between two processes."""

    def __init__(self, bus: Bus, among: set[_Link] | None, peer: str = "") -> None:
        self._bus = bus
        self._among = among
        self.peer = peer
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._next = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's do not inherit from asyncio.Transport
        if self._among is not None:
            self._among.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._among is not None:
            self._among.discard(self)
        self._bus._lost(self)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"{self.peer} is gone", code="bus.gone"))
        self._asked.clear()

    def data_received(self, data: bytes) -> None:
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= 4:
            size = int.from_bytes(rest[at : at + 4], "big")
            if size > FRAME_BYTES_MAX:
                self.abort()
                return
            if len(rest) - at < 4 + size:
                break
            try:
                kind, number, name, payload = _decoder.decode(bytes(rest[at + 4 : at + 4 + size]))
            except (msgspec.DecodeError, ValueError, TypeError):
                self.abort()  # another version of us, maybe
                return
            at += 4 + size
            self._take(kind, number, name, payload)
        del rest[:at]

    def send(self, frame: bytes) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > WAITING_BYTES_MAX:
            return False
        transport.write(frame)
        return True

    async def ask(self, name: str, payload: Any) -> Any:
        self._next += 1
        number = self._next
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            if not self.send(_frame(ASK, number, name, payload)):
                raise Unavailable(f"{self.peer} does not listen", code="bus.gone")
            return await answer
        finally:
            self._asked.pop(number, None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, kind: int, number: int, name: str, payload: Any) -> None:
        if kind in (CAST, ASK):
            self._bus._received(self, kind, number, name, payload)
            return
        answer = self._asked.get(number)
        if answer is not None and not answer.done():
            if kind == ANSWER:
                answer.set_result(payload)
            else:
                answer.set_exception(Unavailable(f"{self.peer}: {payload}", code="bus.failed"))


def _frame(kind: int, number: int, name: str, payload: Any) -> bytes:
    """Four bytes of length, then [kind, number, name, payload] in MessagePack."""
    body = _encoder.encode((kind, number, name, payload))
    if len(body) > FRAME_BYTES_MAX:
        raise Unavailable(f"a message of {len(body):,} bytes is too long for the bus", code="bus.too_long")
    return len(body).to_bytes(4, "big") + body
