"""Two gateway workers are one hub: what one of them is told, devices of the other hear, and either may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hub_plant import WORKERS, Device, Hub, connected, connected_at, eventually

from headrace.core.clock import SystemClock
from headrace.core.identity import message_event_id
from headrace.gateway.client import DeviceClient, Message, Sent

FIRST, SECOND = WORKERS.values()
FLEET = [f"fleet-{number}" for number in range(12)]
DESIRED = "$iothub/twin/PATCH/properties/desired/"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = Hub(tmp_path_factory.mktemp("hub") / "two")
    try:
        made.up()
        asyncio.run(made.register("one", "two", "wanderer", "banned-1", "banned-2", "keeper", *FLEET))
        yield made
    finally:
        made.headrace("down")


@asynccontextmanager
async def at_both(hub: Hub, one: str = "one", two: str = "two") -> AsyncIterator[list[Device]]:
    """A device at each worker, subscribed to all that a hub sends."""
    async with AsyncExitStack() as stack:
        devices = [
            await stack.enter_async_context(connected_at(hub, one, FIRST)),
            await stack.enter_async_context(connected_at(hub, two, SECOND)),
        ]
        for device in devices:
            await device.subscribe()
        yield devices


def test_status_shows_every_worker_and_one_address(hub: Hub) -> None:
    parts = {part["part"]: part for part in json.loads(hub.headrace("status", "--json").stdout)["parts"]}
    assert [parts[name]["state"] for name in WORKERS] == ["ready", "ready"]
    first, second = (parts[name]["addresses"] for name in WORKERS)
    for name in ("mqtt", "mqtt-plain", "https"):
        assert first[name] == second[name]
    assert "broker" in first
    assert "broker" not in second
    assert hub.info["brokerPort"] == int(first["broker"].rpartition(":")[2])


async def test_a_device_that_connects_to_the_other_worker_takes_over(hub: Hub) -> None:
    async with connected_at(hub, "wanderer", FIRST) as old, connected_at_other(hub) as new:
        await asyncio.wait_for(old.closed.wait(), 10)
        assert not new.closed.is_set()
        assert await hub.presence("wanderer") == {"wanderer": (True, SECOND)}


@asynccontextmanager
async def connected_at_other(hub: Hub) -> AsyncIterator[Device]:
    """A second connection of the same device, whose first one is not closed by hand."""
    for _ in range(60):
        async with connected(hub, "wanderer") as device:
            await asyncio.sleep(0.15)  # presence is written 50 ms after the fact
            if await device.where() == SECOND:
                yield device
                return
    raise AssertionError("never came to the second worker")


async def test_a_method_reaches_a_device_at_either_worker(hub: Hub) -> None:
    async with at_both(hub) as devices:
        for number in range(8):  # each request may come to either worker
            device = devices[number % 2]
            body = {"methodName": "echo", "payload": {"n": number}, "responseTimeoutInSeconds": 10}
            answer = await hub.ask("POST", f"twins/{device.id}/methods", body)
            assert (answer.status_code, answer.json()) == (200, {"status": 200, "payload": {"n": number}})


async def test_desired_changes_and_mail_reach_a_device_at_either_worker(hub: Hub) -> None:
    async with at_both(hub) as devices:
        for number in range(8):
            device = devices[number % 2]
            patch = {"properties": {"desired": {"n": number}}}
            assert (await hub.ask("PATCH", f"twins/{device.id}", patch)).status_code == 200
            assert json.loads(await device.hears(DESIRED))["n"] == number
            sent = await hub.ask("POST", f"devices/{device.id}/messages/devicebound", number)
            assert sent.status_code in (200, 201, 204), sent.text
            assert json.loads(await device.hears(f"devices/{device.id}/messages/devicebound/")) == number


async def test_a_device_that_is_disabled_is_closed_at_either_worker(hub: Hub) -> None:
    async with at_both(hub, "banned-1", "banned-2") as devices:
        for device in devices:
            known = (await hub.ask("GET", f"devices/{device.id}")).json()
            answer = await hub.ask(
                "PUT", f"devices/{device.id}", {**known, "status": "disabled"}, **{"If-Match": '"*"'}
            )
            assert answer.status_code == 200, answer.text
            await asyncio.wait_for(device.closed.wait(), 10)


@pytest.mark.parametrize("part", WORKERS)
async def test_a_worker_may_be_killed(hub: Hub, part: str) -> None:
    """Its devices go on at the other, no acknowledged event is lost, sessions stay, and it comes back to the same ports."""
    before, acknowledged = hub.state(part), set[str]()
    assert before is not None

    def client(device: str) -> DeviceClient:
        def heard(sent: Sequence[Sent]) -> None:
            acknowledged.update(message_event_id(device, None, one.message.message_id or "") for one in sent)

        return DeviceClient.from_connection_string(
            hub.strings[device],
            port=hub.info["plainMqttPort"],
            clock=SystemClock(),
            rng=random.Random(device),
            on_ack=heard,
        )

    clients = {device: client(device) for device in FLEET}
    async with connected_at(hub, "keeper", WORKERS[part]) as keeper:
        await keeper.subscribe()
        await asyncio.gather(*(each.connect() for each in clients.values()))
        for number in range(30):
            if number == 10:
                os.kill(before.pid, signal.SIGKILL)
            for each in clients.values():
                await each.publish_many([Message(b"{}", f"{part}-{number}")], timeout_s=30)
        await asyncio.wait_for(keeper.closed.wait(), 10)
    async with connected(hub, "keeper") as keeper:  # it does not subscribe again
        patch = {"properties": {"desired": {"killed": part}}}
        await eventually(lambda: accepted(hub, patch))
        assert json.loads(await keeper.hears(DESIRED))["killed"] == part

        async def back() -> bool:
            state = hub.state(part)
            return state is not None and state.pid != before.pid

        await eventually(back)
        for each in clients.values():
            await each.drain(timeout_s=30)
        after = hub.state(part)
        assert after is not None
        assert {name: after.addresses[name] for name in ("mqtt", "mqtt-plain", "https")} == {
            name: before.addresses[name] for name in ("mqtt", "mqtt-plain", "https")
        }
        assert all(each.connected for each in clients.values())
        await eventually(lambda: all_present(hub))
    await asyncio.gather(*(each.close() for each in clients.values()))
    assert len(acknowledged) == 30 * len(FLEET)
    assert acknowledged <= await stored(hub)


async def accepted(hub: Hub, patch: object) -> bool:
    try:
        return (await hub.ask("PATCH", "twins/keeper", patch)).status_code == 200
    except OSError:
        return False


async def all_present(hub: Hub) -> bool:
    found = await hub.presence(*FLEET, "keeper")
    return len(found) == len(FLEET) + 1 and all(connected for connected, _ in found.values())


async def stored(hub: Hub) -> set[str]:
    async with hub.platform() as platform:
        found: set[str] = set()
        starts, ends = await platform.log.bounds("telemetry")
        for partition, (at, end) in enumerate(zip(starts, ends, strict=True)):
            while at < end:
                batch = await platform.log.read("telemetry", partition, at, rows_max=10_000, wait_s=0)
                found.update(batch.column("_event_id").to_pylist())
                at += batch.num_rows
        return found
