"""The whole gateway on loopback sockets, with our own client as the device."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog
import uvloop
from gateway_parts import HOST, OTHER_KEY, Hub, device, rows_of, until

from headrace.core.config import GatewayConfig
from headrace.core.errors import Unavailable, UserError
from headrace.core.identity import message_event_id
from headrace.gateway.client import Message, Sent
from headrace.gateway.listen import open_port, port_of
from headrace.gateway.server import Gateway, Listening


def messages(count: int, *, first: int = 0) -> list[Message]:
    return [Message(b'{"n":%d}' % number, f"m-{number}") for number in range(first, first + count)]


@pytest.mark.parametrize("tls", [True, False])
async def test_messages_of_a_device_are_in_the_log_when_they_are_acknowledged(hub: Hub, tls: bool) -> None:
    acked: list[str | None] = []

    def on_ack(sent: Sequence[Sent]) -> None:
        acked.extend(each.message.message_id for each in sent)

    client = await hub.client("dev-0", tls=tls, on_ack=on_ack)
    await client.publish_many(messages(3000), timeout_s=20)
    await client.drain(20)
    assert sorted(acked, key=str) == sorted(f"m-{number}" for number in range(3000))
    rows = await rows_of(hub.log)
    assert {row["_event_id"] for row in rows} == {message_event_id("dev-0", None, f"m-{n}") for n in range(3000)}
    by_offset = sorted(rows, key=lambda row: row["_offset"])
    assert [row["_body"] for row in by_offset] == [b'{"n":%d}' % number for number in range(3000)]


def test_it_all_runs_on_uvloop_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        hub = Hub(tmp_path)
        await hub.start()
        for tls in (False, True):
            client = await hub.client("dev-0", tls=tls)
            await client.publish_many(messages(100, first=100 * tls))
            await client.drain(10)
        assert len(await rows_of(hub.log)) == 200
        await hub.stop()

    uvloop.run(scenario())


async def test_many_devices_at_once(tmp_path: Path) -> None:
    hub = Hub(tmp_path, devices=40)
    await hub.start()
    try:
        clients = [await hub.client(f"dev-{index}") for index in range(40)]
        await asyncio.gather(*(client.publish_many(messages(50)) for client in clients))
        await asyncio.gather(*(client.drain(20) for client in clients))
        rows = await rows_of(hub.log)
        assert len(rows) == len({row["_event_id"] for row in rows}) == 2000
        assert hub.log.appends < 200
    finally:
        await hub.stop()


async def test_a_wrong_key_is_told_to_the_client(hub: Hub) -> None:
    with pytest.raises(UserError, match="refused 'dev-0'"):
        await hub.client("dev-0", key="eA==")


async def test_a_client_that_does_not_trust_the_ca_says_so(hub: Hub, tmp_path: Path) -> None:
    other = Hub(tmp_path / "other")
    client = await hub.client("dev-0", tls=True, connect=False)
    client._tls = other.authority.client_context()
    with pytest.raises(UserError, match="not trusted"):
        await client.connect()


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    client = await hub.client("dev-0", connect=False)
    client._port = port
    with pytest.raises(Unavailable, match="does not answer"):
        await client.connect()


async def test_a_client_survives_the_gateway_and_resends_what_was_not_acknowledged(hub: Hub) -> None:
    client = await hub.client("dev-0", in_flight_max=500)
    hub.log.refusals = 1_000_000
    await client.publish_many(messages(300))
    hub.gateway.ingress._clock = FastForward(hub)  # the retries of the log need not be waited for
    for connection in list(hub.gateway.door.connections):
        connection.abort("cut by the test")
    while not client.reconnects:
        await client._wait(10)
    hub.log.refusals = 0
    await client.publish_many(messages(100, first=300))
    await client.drain(20)
    assert client.resent >= 300
    assert len(await rows_of(hub.log)) == 400


class FastForward:
    """The hub's clock, whose sleeps are short."""

    def __init__(self, hub: Hub) -> None:
        self.now, self.monotonic = hub.clock.now, hub.clock.monotonic

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


async def test_a_restarted_gateway_still_knows_sessions_and_gets_all_messages(hub: Hub) -> None:
    client = await hub.client("dev-0")
    await client.publish_many(messages(10))
    await client.drain(10)
    await hub.restart()
    assert hub.gateway.door.sessions.begin("dev-0", clean=False)[0]
    await client.publish_many(messages(10, first=10))
    await client.drain(20)
    assert len(await rows_of(hub.log)) == 20


async def test_stopping_makes_durable_and_acknowledges_what_came_in(tmp_path: Path) -> None:
    hub = Hub(tmp_path, commit_interval_ms=60_000.0)
    await hub.start()
    client = await hub.client("dev-0")
    await client.publish_many(messages(50))
    await until(lambda: hub.gateway.ingress.pending_rows == 50)
    await hub.gateway.stop()
    assert len(await rows_of(hub.log)) == 50
    await client.drain(5)
    assert client.acked == 50
    await client.close()
    presence = await hub.docs.get("presence", "dev-0")
    assert presence is not None
    assert (presence.body["connected"], presence.body["reason"]) == (False, "gateway_stopped")


async def test_a_disabled_device_is_thrown_out_and_stays_out(hub: Hub) -> None:
    client = await hub.client("dev-0")
    hub.devices.change("dev-0", device("dev-0", status="disabled"))
    await until(lambda: not client.connected)
    with pytest.raises(UserError, match="refused"):
        await client._wait(10)


async def test_the_secondary_key_opens_too(hub: Hub) -> None:
    client = await hub.client("dev-1", key=OTHER_KEY)
    assert client.connected


@pytest.mark.parametrize("setting", ["mqtt_port", "https_port", "plain_mqtt_port"])
async def test_a_port_in_use_is_another_one_and_that_is_said_once(tmp_path: Path, setting: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        hub = Hub(tmp_path, **{setting: port})
        with structlog.testing.capture_logs() as lines:
            await hub.start()
    try:
        assert -1 not in hub.ports
        assert port not in hub.ports
        (said,) = [line for line in lines if line["event"] == "port.replaced"]
        assert (said["setting"], said["wanted"], said["got"] in hub.ports) == (setting, port, True)
        assert said["why"] == f"port {port} on 127.0.0.1 is in use"
        client = await hub.client("dev-0", tls=True)
        assert client.connected
    finally:
        await hub.stop()


async def test_a_host_that_is_not_this_machine_is_an_error(tmp_path: Path) -> None:
    hub = Hub(tmp_path, host="192.0.2.1", plain_mqtt_port=-1)
    with pytest.raises(UserError, match="cannot listen") as caught:
        await hub.start()
    assert caught.value.code == "gateway.host"


async def test_workers_share_the_ports_that_the_first_one_got(tmp_path: Path) -> None:
    hub = Hub(tmp_path, workers=2)
    await hub.start()
    second = hub.made(ports=hub.ports)
    try:
        assert await second.start() == hub.ports
        clients = [await hub.client(f"dev-{index % 3}") for index in range(24)]
        await asyncio.gather(*(client.close() for client in clients))
        served = [_connects(each) for each in (hub.gateway, second)]
        assert sum(served) >= 24
        assert min(served) > 0
    finally:
        await second.stop()
        await hub.stop()


def _connects(gateway: Gateway) -> float:
    return float(gateway.door._connects._value.get())


async def test_a_later_worker_takes_the_known_ports_or_none(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with socket.create_server((HOST, 0)) as taken:
        late = hub.made(ports=Listening(taken.getsockname()[1], -1, -1))
        with pytest.raises(UserError, match="is in use"):
            await late.start()


def test_a_port_of_strangers_is_never_shared_with_them() -> None:
    with open_port(HOST, 0, setting="mqtt_port", shared=True) as first:
        port = port_of(first)
        with open_port(HOST, port, setting="mqtt_port", shared=True) as stranger:
            assert port_of(stranger) != port
        with open_port(HOST, port, setting="mqtt_port", shared=True, exact=True) as worker:
            assert port_of(worker) == port


def test_plain_mqtt_is_for_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain MQTT"):
        Hub(tmp_path, host="0.0.0.0", hostname="hub.example")
    with pytest.raises(UserError, match="needs the name"):
        Hub(tmp_path, host="0.0.0.0", plain_mqtt_port=-1)
    Hub(tmp_path, host="0.0.0.0", hostname="hub.example", plain_mqtt_port=-1)


def test_plain_mqtt_is_off_unless_asked_for() -> None:
    assert GatewayConfig().plain_mqtt_port == -1


async def test_a_part_that_fails_makes_the_gateway_unhealthy(hub: Hub) -> None:
    assert hub.gateway.health() == ""

    async def broken() -> None:
        raise ZeroDivisionError("a bug")

    await asyncio.wait([hub.gateway._spawn(broken(), "sweep")], timeout=5)
    assert hub.gateway.health() == "sweep failed: ZeroDivisionError: a bug"


async def test_noise_on_the_port_harms_nobody(hub: Hub) -> None:
    client = await hub.client("dev-0")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff\xff", b"\x00" * 100, b"\x30\x05"):
        reader, writer = await asyncio.open_connection(HOST, hub.ports.plain_port)
        writer.write(noise)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
    await client.publish_many(messages(5))
    await client.drain(10)
    assert len(await rows_of(hub.log)) == 5
