"""TLS on the gateway's ports, with Python's own `ssl` as the client."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from gateway_parts import HOST, KEY, Hub, device, rows_of, until
from pki import Holder, issue
from raw_device import RawDevice, hello

from headrace.core.clock import TICKS_PER_S, Clock, SystemClock
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.certificates import AuthorityCommands
from headrace.gateway.tls import Records, TlsLayer, TlsServer, certificate_of, server_context
from headrace.wire.iothub import sas

OWN = issue("press")
SOMEONE = issue("someone")
ROOT = issue("factory root", ca=True)
MIDDLE = issue("line 4", ROOT, ca=True)
NOT_AUTHORISED = 5


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub with a device of each kind, and a registered authority."""
    hub = Hub(tmp_path)
    bare: dict[str, Any] = {"primary_key": "", "secondary_key": ""}
    thumb = device("thumb", authentication="selfSigned", primary_thumbprint="", secondary_thumbprint=OWN.sha256, **bare)
    for made in (thumb, device("issued", authentication="certificateAuthority", **bare)):
        hub.devices.change(made.id, made)
    commands = AuthorityCommands(hub.docs, hub.clock, random.Random(1).randbytes)
    await commands.add("root", ROOT.pem, trusted=True)
    await hub.start()
    yield hub
    await hub.stop()


def showing(hub: Hub, holder: Holder | None, folder: Path) -> ssl.SSLContext:
    context = hub.authority.client_context()
    return context if holder is None else holder.show_in(context, folder)


def token(id: str) -> bytes:
    return sas.build(f"{HOST}/devices/{id}", KEY, expires_s=2**32).encode()


# who is let in


@pytest.mark.parametrize(
    ("id", "holder", "code"),
    [
        ("thumb", OWN, 0),
        ("thumb", SOMEONE, NOT_AUTHORISED),
        ("issued", issue("issued", ROOT), 0),
        ("issued", issue("issued", MIDDLE), 0),
        ("issued", issue("thumb", ROOT), NOT_AUTHORISED),
        ("issued", issue("issued"), NOT_AUTHORISED),
        ("issued", issue("issued", ROOT, days=(-3, -1)), NOT_AUTHORISED),
        ("dev-0", OWN, NOT_AUTHORISED),
        ("nobody", OWN, NOT_AUTHORISED),
    ],
)
async def test_a_certificate_opens_what_it_was_registered_for(
    plant: Hub, tmp_path: Path, id: str, holder: Holder, code: int
) -> None:
    async with RawDevice(plant.ports.mqtt_port, showing(plant, holder, tmp_path)) as raw:
        assert await raw.connack(id) == code
        if code == 0:
            await raw.publish(id)
            assert [row["_device"] for row in await rows_of(plant.log)] == [id]
        else:
            assert await raw.rest() == b""


async def test_a_key_does_not_open_what_has_a_certificate_and_a_certificate_beside_a_token_does_no_harm(
    plant: Hub, tmp_path: Path
) -> None:
    context = showing(plant, OWN, tmp_path)
    async with RawDevice(plant.ports.mqtt_port, context) as raw:
        assert await raw.connack("thumb", token("thumb")) == NOT_AUTHORISED
    async with RawDevice(plant.ports.mqtt_port, context) as raw:
        assert await raw.connack("dev-0", token("dev-0")) == 0


async def test_a_disabled_device_does_not_come_in_with_its_certificate(plant: Hub, tmp_path: Path) -> None:
    found = plant.devices.get("thumb")
    assert found is not None
    plant.devices.change(
        "thumb", device("thumb", authentication="selfSigned", primary_thumbprint=OWN.sha1, status="disabled")
    )
    async with RawDevice(plant.ports.mqtt_port, showing(plant, OWN, tmp_path)) as raw:
        assert await raw.connack("thumb") == NOT_AUTHORISED


async def test_an_authority_registered_a_moment_ago_counts(plant: Hub, tmp_path: Path) -> None:
    late = issue("late root", ca=True)
    commands = AuthorityCommands(plant.docs, plant.clock, random.Random(1).randbytes)
    await commands.add("late", late.pem, trusted=True)
    async with RawDevice(plant.ports.mqtt_port, showing(plant, issue("issued", late), tmp_path)) as raw:
        assert await raw.connack("issued") == 0
    await commands.delete("late")
    await until(lambda: len(plant.gateway._authorities._anchors) == 1)
    async with RawDevice(plant.ports.mqtt_port, showing(plant, issue("issued", late), tmp_path)) as raw:
        assert await raw.connack("issued") == NOT_AUTHORISED


async def test_a_connection_ends_with_the_certificate_that_an_authority_issued(plant: Hub, tmp_path: Path) -> None:
    holder = issue("issued", ROOT)
    async with RawDevice(plant.ports.mqtt_port, showing(plant, holder, tmp_path)) as raw:
        assert await raw.connack("issued") == 0
        connection = plant.gateway.door.by_client["issued"]
        end_s = holder.certificate.not_valid_after_utc.timestamp()
        now = plant.clock.monotonic()
        connection.check(now, end_s - 1)
        connection.check(now, plant.clock.now() / TICKS_PER_S)
        assert not connection.reason
        connection.check(now, end_s + 1)
        assert connection.reason == "token_expired"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_resumed_session_still_has_its_certificate(plant: Hub, tmp_path: Path, version: ssl.TLSVersion) -> None:
    context = showing(plant, issue("issued", MIDDLE), tmp_path)
    context.maximum_version = version

    def twice() -> tuple[list[int], bool]:
        codes, session, reused = [], None, False
        for _ in range(2):
            plain = socket.create_connection((HOST, plant.ports.mqtt_port), timeout=10)
            with context.wrap_socket(plain, server_hostname=HOST, session=session) as wrapped:
                wrapped.sendall(hello("issued"))
                codes.append(wrapped.recv(4)[3])
                session, reused = wrapped.session, bool(wrapped.session_reused)
        return codes, reused

    assert await asyncio.to_thread(twice) == ([0, 0], True)


async def test_https_knows_certificates_too(plant: Hub, tmp_path: Path) -> None:
    base = f"https://{HOST}:{plant.ports.https_port}"
    async with httpx.AsyncClient(base_url=base, verify=showing(plant, OWN, tmp_path)) as client:
        assert (await client.post("/devices/thumb/messages/events", content=b"{}")).status_code == 204
        assert (await client.post("/devices/issued/messages/events", content=b"{}")).status_code == 401
        assert (await client.post("/devices/dev-0/messages/events", content=b"{}")).status_code == 401
    async with httpx.AsyncClient(base_url=base, verify=showing(plant, None, tmp_path)) as client:
        assert (await client.post("/devices/thumb/messages/events", content=b"{}")).status_code == 401
    assert [row["_device"] for row in await rows_of(plant.log)] == ["thumb"]


# the layer itself


@pytest.fixture
def clock() -> Clock:
    return SystemClock()


class Talker(asyncio.Protocol):
    """The protocol inside: keeps what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.calls = 0
        self.paused = self.ended = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        assert data
        self.heard += data
        self.calls += 1

    def eof_received(self) -> None:
        self.ended = True

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Stage:
    """A TLS server around one Talker at a time, and a context that trusts it."""

    def __init__(self, folder: Path, clock: Clock, **limits: Any) -> None:
        authority = DevelopmentAuthority(folder, clock)
        self.failures: list[str] = []
        self.talkers: list[Talker] = []
        self.client = authority.client_context()
        context = server_context(*authority.server_pair())
        self.tls = TlsServer(
            context,
            **limits,
            on_failed=lambda reason, address: self.failures.append(reason),
        )

        def make() -> Talker:
            self.talkers.append(Talker())
            return self.talkers[-1]

        self.factory: Callable[[], TlsLayer] = self.tls.wrap(make)

    async def __aenter__(self) -> Stage:
        self.server = await asyncio.get_running_loop().create_server(self.factory, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for talker in self.talkers:
            talker.transport.abort()
        self.server.close()
        await self.server.wait_closed()

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, self.port, ssl=self.client), 10)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            for _ in range(3):
                await asyncio.sleep(0)  # the transports below close in turn


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("on_uvloop", [False, True])
def test_megabytes_pass_both_ways_unchanged(
    tmp_path: Path, clock: Clock, version: ssl.TLSVersion, on_uvloop: bool
) -> None:
    sent = random.Random(3).randbytes(3_000_000)

    async def scenario() -> None:
        async with Stage(tmp_path, clock) as stage:
            stage.client.maximum_version = version
            async with stage.dial() as (reader, writer):
                writer.write(sent)
                await until(lambda: bool(stage.talkers and len(stage.talkers[0].heard) == len(sent)))
                talker = stage.talkers[0]
                assert talker.heard == sent
                assert talker.calls < 1000  # a read, not a record, is what is handed over
                talker.transport.write(sent * 8)
                await until(lambda: talker.paused)  # more than sockets hold for a client that does not read
                assert await asyncio.wait_for(reader.readexactly(8 * len(sent)), 20) == sent * 8
                await until(lambda: not talker.paused)
                assert talker.transport.get_extra_info("tls_version") == version.name.replace("_", ".")

    (uvloop.run if on_uvloop else asyncio.run)(scenario())


async def test_nothing_is_handed_over_while_reading_is_paused_and_all_of_it_afterwards(
    tmp_path: Path, clock: Clock
) -> None:
    async with Stage(tmp_path, clock) as stage, stage.dial() as (_, writer):
        await until(lambda: bool(stage.talkers))
        talker = stage.talkers[0]
        layer = talker.transport
        assert isinstance(layer, TlsLayer)
        layer.pause_reading()
        writer.write(b"x" * 50_000)
        await writer.drain()
        for _ in range(200):
            await asyncio.sleep(0)
        assert talker.heard == b""
        layer.resume_reading()
        await until(lambda: len(talker.heard) == 50_000)


async def test_what_was_read_before_the_pause_waits_undecrypted(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage, stage.dial() as (_, writer):
        await until(lambda: bool(stage.talkers))
        talker = stage.talkers[0]
        layer = talker.transport
        assert isinstance(layer, TlsLayer)
        layer._reading = False  # as if a read of the socket had been under way already
        writer.write(b"hello")
        await until(lambda: layer._whole == 1)
        assert talker.heard == b""
        layer.resume_reading()
        await until(lambda: talker.heard == b"hello")


async def test_closing_tells_the_client_and_flushes_what_was_written(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage:

        def read_all() -> bytes:
            plain = socket.create_connection((HOST, stage.port), timeout=10)
            with stage.client.wrap_socket(plain, server_hostname=HOST, suppress_ragged_eofs=False) as wrapped:
                read = b""
                while data := wrapped.recv(65_536):
                    read += data
                return read

        reading = asyncio.create_task(asyncio.to_thread(read_all))
        await until_slow(lambda: bool(stage.talkers))
        stage.talkers[0].transport.write(b"y" * 500_000)
        stage.talkers[0].transport.close()
        stage.talkers[0].transport.write(b"never sent")
        assert await asyncio.wait_for(reading, 10) == b"y" * 500_000
        await until_slow(lambda: stage.talkers[0].lost)
        assert stage.failures == []


async def until_slow(condition: Callable[[], bool]) -> None:
    """As `until`, where a thread has to do its part."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever it is, it has no event to wait for
            await asyncio.sleep(0.002)


async def test_the_clients_goodbye_ends_the_connection(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage, stage.dial() as (_, writer):
        writer.write(b"last words")
        writer.close()
        await until_slow(lambda: bool(stage.talkers) and stage.talkers[0].lost)
        assert (stage.talkers[0].heard, stage.talkers[0].ended) == (b"last words", True)


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x10\x20\x00\x04MQTT", b"\x16\x03\x01\x00\x05hello", b"\xff" * 99]
)
async def test_noise_instead_of_a_handshake_is_noted_and_closed(tmp_path: Path, clock: Clock, noise: bytes) -> None:
    async with Stage(tmp_path, clock) as stage:
        reader, writer = await asyncio.open_connection(HOST, stage.port)
        writer.write(noise)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await until_slow(lambda: len(stage.failures) == 1)
        assert stage.talkers == []


async def test_whoever_never_finishes_the_handshake_is_dropped(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock, handshake_timeout_s=0.01) as stage:
        reader, writer = await asyncio.open_connection(HOST, stage.port)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        assert stage.failures == ["handshake timeout"]
        writer.close()


async def test_a_probe_that_only_connects_is_no_failure(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage:
        _, writer = await asyncio.open_connection(HOST, stage.port)
        await until(lambda: stage.tls.shaking == 1)
        writer.close()
        await until_slow(lambda: stage.tls.shaking == 0)
        assert stage.failures == []


async def test_handshakes_above_the_bound_are_turned_away_and_then_no_longer(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock, handshakes_max=3) as stage:
        waiting = [await asyncio.open_connection(HOST, stage.port) for _ in range(3)]
        await until(lambda: stage.tls.shaking == 3)
        with pytest.raises(OSError):  # noqa: PT011 - cut in any way
            await asyncio.open_connection(HOST, stage.port, ssl=stage.client)
        assert stage.failures == ["too many handshakes"]
        for _, writer in waiting:
            writer.close()
        await until_slow(lambda: stage.tls.shaking == 0)
        async with stage.dial():
            await until(lambda: len(stage.talkers) == 1)
            assert stage.tls.shaking == 0


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(hub: Hub, tmp_path: Path) -> None:
    class Once:
        """A clock on which half a day passes once."""

        slept = 0

        async def sleep(self, seconds: float) -> None:
            self.slept += 1
            if self.slept > 1:
                await asyncio.Event().wait()

    other = DevelopmentAuthority(tmp_path / "renewed", hub.clock)
    tls = TlsServer(server_context(*hub.authority.server_pair()))
    earlier = tls.context
    hub.gateway._clock, hub.gateway._authority = Once(), other  # type: ignore[assignment]
    renewing = asyncio.create_task(hub.gateway._renew(tls, hub.authority.server_pair()))
    await until_slow(lambda: tls.context is not earlier)
    renewing.cancel()
    server = await asyncio.get_running_loop().create_server(tls.wrap(Talker), HOST, 0)
    async with RawDevice(server.sockets[0].getsockname()[1], other.client_context()) as raw:
        await raw.send(b"trusted")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with RawDevice(server.sockets[0].getsockname()[1], hub.authority.client_context()):
            pass
    server.close()
    await server.wait_closed()


async def test_versions_below_1_2_are_refused(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage:
        stage.client.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            stage.client.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            stage.client.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(HOST, stage.port, ssl=stage.client)
        await until_slow(lambda: len(stage.failures) == 1)


async def test_a_client_without_a_certificate_has_none(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage, stage.dial() as (_, _writer):
        await until(lambda: bool(stage.talkers))
        assert certificate_of(stage.talkers[0].transport) is None


async def test_a_certificate_that_nobody_issued_is_seen_with_its_chain(tmp_path: Path, clock: Clock) -> None:
    async with Stage(tmp_path, clock) as stage:
        issue("dev", MIDDLE).show_in(stage.client, tmp_path)
        async with stage.dial() as (_, _writer):
            await until(lambda: bool(stage.talkers))
            shown = certificate_of(stage.talkers[0].transport)
            assert shown is not None
            assert MIDDLE.der in shown.chain


def test_records_are_counted_wherever_the_stream_is_cut() -> None:
    rng = random.Random(11)
    for _ in range(200):
        sizes = [rng.choice([0, 1, 17, 300, 16_384]) for _ in range(rng.randint(1, 8))]
        stream = b"".join(b"\x17\x03\x03" + size.to_bytes(2) + bytes(size) for size in sizes)
        cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randint(0, 12)))
        records, seen = Records(), 0
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            if stream[start:end]:
                seen += records.count(stream[start:end])
                complete = sum(end >= sum(5 + size for size in sizes[: index + 1]) for index in range(len(sizes)))
                assert seen == complete
