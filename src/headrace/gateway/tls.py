"""TLS on the gateway's ports: a client certificate is asked for, never required, and any is accepted here.

A device's certificate may be self-signed, so its issuer means nothing to TLS: OpenSSL proves that the client has the key, and
admission decides what the certificate is worth. Python's `ssl` cannot ask without judging; pyOpenSSL can, on memory buffers
(docs/decisions/0006-tls.md has what both cost). One object a connection is both the protocol below and the transport above.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL

from headrace.devices.certificates import ClientCertificate

HANDSHAKE_TIMEOUT_S = 20.0
HANDSHAKES_MAX = 8000  # under way at a time; what one core can finish within the time they have
RECORD_BYTES = 16_384  # of plain text, at most, in one TLS record
RECORD_OVERHEAD_BYTES = 64
TOO_LATE = "handshake timeout"
SPARE_BYTES = 4096  # room for a handshake flight, tickets and alerts

Make = Callable[[], asyncio.Protocol]
OnFailed = Callable[[str, str], None]
"""Is told the reason and the address when a handshake fails."""


def server_context(certificate: bytes, key: bytes) -> SSL.Context:
    """TLS 1.2 and 1.3, stateless session tickets, no renegotiation, no compression.

    Both are PEM; behind the server's certificate may stand those that lead to its authority.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection keeps no record buffers
    context.set_session_id(b"headrace")  # without it OpenSSL refuses to resume sessions with certificates
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # the client keeps the session, in its ticket
    own, *above = x509.load_pem_x509_certificates(certificate)
    context.use_certificate(own)
    for each in above:
        context.add_extra_chain_cert(each)
    context.use_privatekey(cast(Any, load_pem_private_key(key, None)))
    context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, _accept)
    return context


def _accept(connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
    return True


class TlsServer:
    """What the connections of a port share."""

    def __init__(
        self,
        context: SSL.Context,
        *,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        handshakes_max: int = HANDSHAKES_MAX,
        on_failed: OnFailed = lambda reason, address: None,
    ) -> None:
        self.context = context
        self.handshake_timeout_s = handshake_timeout_s
        self.handshakes_max = handshakes_max
        self.on_failed = on_failed
        self.shaking = 0  # connections whose handshake is under way

    def wrap(self, make: Make) -> Callable[[], TlsLayer]:
        """A protocol factory for loop.create_server, around one for what speaks inside; that is made after the handshake."""
        return lambda: TlsLayer(self, make)


class TlsLayer(asyncio.Protocol, asyncio.Transport):
    """One connection. `told` overrides what the socket says (get_extra_info), where a proxy in front knows better.

    Extra information besides the socket's: `peer_certificate` (DER or None), `peer_chain` (the DER certificates that came with
    it, its own first) and `tls_version`. Nothing is buffered here: what is written goes to the socket's own buffer, whose
    limits hold, and while reading is paused at most one read of the socket waits undecrypted.
    """

    __slots__ = (
        "_closing",
        "_heard",
        "_loop",
        "_make",
        "_protocol",
        "_raw",
        "_reading",
        "_records",
        "_server",
        "_ssl",
        "_timer",
        "_told",
        "_whole",
    )

    def __init__(self, server: TlsServer, make: Make, told: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self._make = make
        self._told = told
        self._ssl = SSL.Connection(server.context, None)
        self._ssl.set_accept_state()
        self._raw: asyncio.Transport | None = None
        self._protocol: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._records = Records()
        self._heard = False  # anything at all
        self._whole = 0  # records in OpenSSL's buffer that nobody has asked for
        self._closing = False

    # the protocol, below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._server.handshake_timeout_s, self._fail, TOO_LATE)
        self._server.shaking += 1
        if self._server.shaking > self._server.handshakes_max:
            self._fail("too many handshakes")
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._heard = True
        self._ssl.bio_write(data)
        self._whole += self._records.count(data)
        if self._protocol is None and not self._shaken():
            return
        if self._reading and self._whole:
            self._deliver()

    def eof_received(self) -> None:
        """Also without close_notify: MQTT and HTTP mark their own ends. The transport below closes itself."""
        if self._protocol is not None and not self._closing:
            self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            if self._heard:  # a probe that only connects has not failed at anything
                self._fail("closed during the handshake")
            self._settled()
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
        if data and not self._closing:
            size = len(data)
            if size <= RECORD_BYTES:
                self._ssl.send(data)
            else:
                self._ssl.sendall(data)
            self._flush(size + RECORD_OVERHEAD_BYTES * (1 + size // RECORD_BYTES))

    def close(self) -> None:
        """Send close_notify and what is written already, then close."""
        if self._closing:
            return
        self._closing = True
        if self._protocol is not None:
            with contextlib.suppress(SSL.Error):  # it has failed already: there is nobody to tell
                self._ssl.shutdown()
            self._flush()
        if self._raw is not None:
            self._raw.close()

    def abort(self) -> None:
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing or self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        if self._reading and self._raw is not None and not self.is_closing():
            self._reading = False
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._raw is not None and not self.is_closing():
            self._reading = True
            self._raw.resume_reading()
            if self._whole:
                self._loop.call_soon(self._deliver_held)

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol or self

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size() if self._raw is not None else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peer_certificate":
            found = self._ssl.get_peer_certificate(as_cryptography=True)
            return None if found is None else found.public_bytes(Encoding.DER)
        if name == "peer_chain":
            chain = self._ssl.get_peer_cert_chain(as_cryptography=True) or []
            return tuple(found.public_bytes(Encoding.DER) for found in chain)
        if name == "tls_version":
            return self._ssl.get_protocol_version_name()
        if name == "sslcontext":
            return self._server.context
        if self._told is not None and (name in self._told or name == "socket"):
            return self._told.get(name)  # not the socket itself: it would contradict what was told
        return self._raw.get_extra_info(name, default) if self._raw is not None else default

    # inside

    def _shaken(self) -> bool:
        """Go on with the handshake; True once it is done and the protocol inside knows its transport."""
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as exc:
            self._flush()
            self._fail(reason_of(exc))
            return False
        self._flush()
        self._settled()
        self._protocol = self._make()
        self._protocol.connection_made(self)
        return not self._closing

    def _settled(self) -> None:
        """The handshake is over, well or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._server.shaking -= 1

    def _deliver_held(self) -> None:
        if self._whole and self._reading and not self._closing:
            self._deliver()

    def _deliver(self) -> None:
        """Hand over all that can be decrypted, in one call. A record gives one piece at most, so that many are asked for; where
        one gave none it was TLS's own, and may want an answer."""
        chunks: list[bytes] = []
        receive = self._ssl.recv
        ended = False
        whole, self._whole = self._whole, 0
        try:
            for _ in range(whole):
                chunks.append(receive(RECORD_BYTES))
        except SSL.WantReadError:
            self._flush()
        except SSL.Error:  # ZeroReturnError is close_notify; the others broke the protocol, and OpenSSL made an alert
            self._flush()
            ended = True
        assert self._protocol is not None
        if chunks:
            self._protocol.data_received(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if ended and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _flush(self, expected: int = SPARE_BYTES) -> None:
        """Send what OpenSSL wants sent; `expected` bytes at least fit into the first piece."""
        if self._raw is None:
            return
        read = self._ssl.bio_read
        try:
            while True:
                out = read(expected)
                self._raw.write(out)
                if len(out) < expected:
                    return
        except SSL.WantReadError:
            return

    def _fail(self, reason: str) -> None:
        if self._closing:
            return
        peer = self.get_extra_info("peername") or ("",)
        self._server.on_failed(reason, str(peer[0]))
        self.close()
        if reason == TOO_LATE:
            self.abort()


class Records:
    """Counts the TLS records that end in what was read: 5 bytes of type, version and length, then that many.

    To ask OpenSSL for more than there is costs an exception, which is more than the decryption of a small message.
    """

    __slots__ = ("_header", "_missing")

    def __init__(self) -> None:
        self._missing = 0  # bytes of a record that has begun
        self._header = b""  # the start of a record, less than five bytes

    def count(self, data: bytes) -> int:
        """How many records `data` completes."""
        size = len(data)
        if not self._missing and not self._header and size >= 5 and size == 5 + (data[3] << 8 | data[4]):
            return 1
        position, whole = self._missing, 0
        if self._missing:
            if size < self._missing:
                self._missing -= size
                return 0
            self._missing, whole = 0, 1
        elif self._header:
            data = self._header + data
            size, self._header = len(data), b""
        while size - position >= 5:
            end = position + 5 + (data[position + 3] << 8 | data[position + 4])
            if end > size:
                self._missing = end - size
                return whole
            position, whole = end, whole + 1
        self._header = data[position:]
        return whole


def certificate_of(transport: asyncio.BaseTransport) -> ClientCertificate | None:
    """What the client at the other end has shown, to us or to a trusted proxy in front."""
    der = transport.get_extra_info("peer_certificate") or b""
    name = transport.get_extra_info("verified_name") or ""
    if not der and not name:
        return None
    return ClientCertificate(der, tuple(transport.get_extra_info("peer_chain") or ()), name)


def reason_of(exc: SSL.Error) -> str:
    """What OpenSSL calls it, such as `tlsv1 alert unknown ca`: the client does not trust our certificate."""
    found = exc.args[0] if exc.args else ""
    if isinstance(found, list) and found:
        return str(found[-1][-1])
    return str(found) or type(exc).__name__
