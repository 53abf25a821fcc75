"""MQTT over WebSocket: binary frames on `/$iothub/websocket`, subprotocol `mqtt`, cut however the client likes.

MQTT is a stream: what frames it comes in means nothing, so payloads are handed on as they arrive, those of one read together,
and each write becomes one frame. The `websockets` library does RFC 6455 without I/O; compression is not offered. The layer is
a transport to what is above it, so a device over WebSocket is a device like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

PATH = "/$iothub/websocket"
OnFailed = Callable[[str, str], None]

_quiet = logging.getLogger("headrace.gateway.websocket")
_quiet.setLevel(logging.CRITICAL + 1)  # the library tells of every connection


class WebSocketLayer(asyncio.Protocol, asyncio.Transport):
    """One connection, from its upgrade request on. `message_bytes_max` bounds a frame, and with it what is held."""

    def __init__(self, make: Callable[[], asyncio.Protocol], *, message_bytes_max: int, on_failed: OnFailed) -> None:
        super().__init__()
        self._make = make
        self._on_failed = on_failed
        self._machine = ServerProtocol(
            subprotocols=[Subprotocol("mqtt")], max_size=(None, message_bytes_max), logger=_quiet
        )
        self._below: asyncio.Transport | None = None
        self._protocol: asyncio.Protocol | None = None
        self._closing = False

    # the protocol, below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._machine.receive_data(data)
        payloads: list[bytes] = []
        for event in self._machine.events_received():
            if isinstance(event, Request):
                self._greet(event)
            elif isinstance(event, Frame):
                if event.opcode is Opcode.TEXT:
                    self._machine.fail(CloseCode.UNSUPPORTED_DATA, "binary frames only")
                elif event.opcode in (Opcode.BINARY, Opcode.CONT) and event.data:
                    payloads.append(bytes(event.data))
        ended = self._send()
        if payloads and self._protocol is not None:
            self._protocol.data_received(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        if ended and not self._closing:
            self._closing = True
            if self._protocol is not None:
                self._protocol.eof_received()
            if self._below is not None:
                self._below.close()

    def eof_received(self) -> None:
        if self._protocol is not None and not self._closing:
            self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._protocol is not None:
            self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    # the transport, above

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and self._machine.state is State.OPEN:
            self._machine.send_binary(data)
            self._send()

    def close(self) -> None:
        """Send what is written and a close frame, then close: a device that went silent is not waited for."""
        if self._closing:
            return
        self._closing = True
        if self._machine.state is State.OPEN:
            self._machine.send_close(CloseCode.NORMAL_CLOSURE)
            self._send()
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        self._closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._closing or self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        if self._below is not None and not self.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None and not self.is_closing():
            self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default) if self._below is not None else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol or self

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size() if self._below is not None else 0

    # inside

    def _greet(self, request: Request) -> None:
        """Answer the upgrade; what is above is made once it has succeeded."""
        machine = self._machine
        if unquote(request.path.partition("?")[0]) != PATH:
            machine.send_response(machine.reject(404, f"there is no WebSocket here; devices use {PATH}\n"))
            self._failed("path")
            return
        response = machine.accept(request)
        machine.send_response(response)
        if response.status_code != 101:
            self._failed(f"status {response.status_code}: {machine.handshake_exc}")
            return
        self._send()
        self._protocol = self._make()
        self._protocol.connection_made(self)

    def _failed(self, reason: str) -> None:
        peer = self.get_extra_info("peername") or ("",)
        self._on_failed(reason, str(peer[0]))

    def _send(self) -> bool:
        """Write what the machine has to say; True when that was the last."""
        pieces = self._machine.data_to_send()
        ended = SEND_EOF in pieces
        if self._below is not None and not self._below.is_closing():
            data = b"".join(pieces)
            if data:
                self._below.write(data)
        return ended
