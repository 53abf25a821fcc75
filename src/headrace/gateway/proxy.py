"""PROXY protocol, version 2: what a TLS terminator or load balancer in front says of the client, before the client's bytes.

Only networks named in the settings may say it, and those must: a header is never guessed at, or a client could forge one
through a proxy that sends none. Behind the header comes plain text or TLS (for a balancer that does not terminate it).
Layout: "The PROXY protocol", HAProxy Technologies, section 2.2.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

from headrace.core.errors import DataError, UserError
from headrace.gateway.tls import Make, OnFailed, TlsLayer, TlsServer

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
HEAD_BYTES = 16
HEADER_BYTES_MAX = HEAD_BYTES + 16_384  # far more than an address and a certificate; the format allows 65,551
HEADER_TIMEOUT_S = 5.0
TLS_HANDSHAKE = 0x16  # the first byte of every TLS connection
_TLV_SSL, _TLV_CN, _TLV_CERTIFICATE = 0x20, 0x22, 0x28
_CLIENT_SSL, _CLIENT_CERTIFICATE = 0x01, 0x06


class BadHeader(DataError):
    """No PROXY protocol header of version 2, where one must be."""

    code = "gateway.proxy_header"


class Told(NamedTuple):
    """What the proxy says. `address` is None for connections of the proxy's own (health checks)."""

    address: tuple[str, int] | None = None
    tls: bool = False  # the client spoke TLS with the proxy
    certificate: bytes | None = None  # the client's, DER
    verified_name: str = ""  # the common name of a certificate that the proxy itself has verified


def read_header(data: bytes) -> tuple[Told, int] | None:
    """The header at the start of `data` and its length; None while it is incomplete. Raises BadHeader."""
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise BadHeader("no PROXY protocol header, version 2", hint="the proxy must send one: `send-proxy-v2`")
    if len(data) < HEAD_BYTES:
        return None
    what, family, size = struct.unpack_from("!BBH", data, 12)
    end = HEAD_BYTES + size
    if what not in (0x20, 0x21) or end > HEADER_BYTES_MAX:
        raise BadHeader(f"a PROXY header of version and command {what:#x}, {size} bytes", hint="send version 2")
    if len(data) < end:
        return None
    if what == 0x20:  # LOCAL: whatever stands behind it is to be ignored
        return Told(), end
    return _described(data[HEAD_BYTES:end], family), end


def _described(data: bytes, family: int) -> Told:
    sizes = {0x11: 12, 0x21: 36}
    address = None
    if family in sizes:
        if len(data) < sizes[family]:
            raise BadHeader("the addresses of a PROXY header are cut off", hint="send version 2 as it is defined")
        if family == 0x11:
            address = (socket.inet_ntop(socket.AF_INET, data[:4]), int.from_bytes(data[8:10]))
        else:
            address = (socket.inet_ntop(socket.AF_INET6, data[:16]), int.from_bytes(data[32:34]))
        data = data[sizes[family] :]
    elif family != 0:
        raise BadHeader(f"a PROXY header of family {family:#x}", hint="TCP over IPv4 or IPv6")
    ssl = next((value for kind, value in _values(data) if kind == _TLV_SSL), None)
    if ssl is None or len(ssl) < 5:
        return Told(address)
    client, verify = struct.unpack_from("!BI", ssl)
    inner = dict(_values(ssl[5:]))
    shown = bool(client & _CLIENT_CERTIFICATE)
    name = inner.get(_TLV_CN, b"").decode("utf-8", "replace") if shown and verify == 0 else ""
    certificate = inner.get(_TLV_CERTIFICATE) if shown else None
    return Told(address, bool(client & _CLIENT_SSL), certificate or None, name)


def _values(data: bytes) -> Iterable[tuple[int, bytes]]:
    """Type, length, value, one after the other."""
    position = 0
    while position < len(data):
        if position + 3 > len(data):
            raise BadHeader("a value of a PROXY header is cut off", hint="send version 2 as it is defined")
        kind, size = struct.unpack_from("!BH", data, position)
        position += 3
        if position + size > len(data):
            raise BadHeader("a value of a PROXY header is cut off", hint="send version 2 as it is defined")
        yield kind, data[position : position + size]
        position += size


class TrustedProxies:
    """The networks whose word is taken. Raises UserError for what is no network."""

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks = [ipaddress.ip_network(network) for network in networks]
        except ValueError as exc:
            raise UserError(str(exc), hint='[gateway] proxy_trusted = ["10.1.0.0/24"]', code="gateway.proxy") from exc

    def __contains__(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


class ProxyDoor:
    """A port that trusted proxies and, over TLS as ever, everybody else may connect to."""

    def __init__(self, trusted: TrustedProxies, tls: TlsServer, *, on_failed: OnFailed) -> None:
        self._trusted = trusted
        self._tls = tls
        self._on_failed = on_failed

    def wrap(self, make: Make) -> Callable[[], ProxyLayer]:
        """A protocol factory for loop.create_server."""
        return lambda: ProxyLayer(self, make)

    def behind(self, transport: asyncio.Transport, make: Make, first: bytes, told: Told | None) -> None:
        """Hand a connection over to what speaks on it. `first` are bytes already read."""
        said = _extra(told, transport) if told is not None else None
        inner: asyncio.Protocol
        upper: asyncio.BaseTransport = transport
        if told is None or first[0] == TLS_HANDSHAKE:
            inner = TlsLayer(self._tls, make, said)
        else:
            inner = make()
            upper = Relayed(transport, said or {})
        transport.set_protocol(inner)
        inner.connection_made(upper)
        if first and not transport.is_closing():
            inner.data_received(first)

    def trusts(self, address: str) -> bool:
        return address in self._trusted

    def failed(self, reason: str, address: str) -> None:
        self._on_failed(reason, address)


class ProxyLayer(asyncio.Protocol):
    """A connection until it is known who is at its other end."""

    def __init__(self, door: ProxyDoor, make: Make) -> None:
        self._door = door
        self._make = make
        self._read = b""
        self._told: tuple[Told, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        if self._door.trusts(self._address):
            self._timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self._fail, "no header in time")
        else:
            self._door.behind(self._transport, self._make, b"", None)

    def data_received(self, data: bytes) -> None:
        self._read += data
        try:
            self._told = self._told or read_header(self._read)
        except BadHeader as exc:
            self._fail(exc.message)
            return
        if self._told is not None and len(self._read) > self._told[1]:  # the byte behind tells TLS from plain text
            if self._timer is not None:
                self._timer.cancel()
            told, end = self._told
            self._door.behind(self._transport, self._make, self._read[end:], told)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fail(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._transport.is_closing():
            self._door.failed(reason, self._address)
            self._transport.abort()


def _extra(told: Told, transport: asyncio.Transport) -> Mapping[str, Any]:
    found: dict[str, Any] = {"peername": told.address or transport.get_extra_info("peername")}
    found["sockname"] = transport.get_extra_info("sockname")
    found["sslcontext"] = told.tls or None
    if told.certificate:
        found["peer_certificate"] = told.certificate
    found["verified_name"] = told.verified_name
    return found


class Relayed(asyncio.Transport):
    """A transport whose peer is somebody else than its socket says."""

    def __init__(self, below: asyncio.Transport, told: Mapping[str, Any]) -> None:
        super().__init__()
        self._below = below
        self._told = told
        self.write = below.write  # type: ignore[method-assign]  # no call more on the hot path
        self.is_closing = below.is_closing  # type: ignore[method-assign]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in self._told or name == "socket":
            return self._told.get(name, default)
        return self._below.get_extra_info(name, default)

    def close(self) -> None:
        self._below.close()

    def abort(self) -> None:
        self._below.abort()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def is_reading(self) -> bool:
        return self._below.is_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._below.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._below.get_protocol()

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()
