"""Several gateway processes of one project, here as several buses in one: they find each other, ask, and take over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_parts import Parts, until
from hub_client import arrives, listening, messages, nothing_arrives, say

from headrace.core.errors import Unavailable, UserError
from headrace.devices.mailbox import Message
from headrace.gateway.bus import FRAME_BYTES_MAX, Bus
from headrace.gateway.methods import DeviceNotOnline, Methods, MethodTimeout
from headrace.wire.iothub.topics import Identity

A = Identity("a")
MAIL = "devices/a/messages/devicebound/#"


class Buses:
    """Buses in one folder, stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Bus] = []

    async def add(self, name: str, *, start: bool = True, **handlers: Any) -> Bus:
        bus = Bus(self.folder, name)
        self.made.append(bus)
        for called, handler in handlers.items():
            bus.on(called, handler)
        if start:
            await bus.start()
        return bus


@pytest.fixture
async def buses(tmp_path: Path) -> AsyncIterator[Buses]:
    made = Buses(tmp_path / "run")
    yield made
    for bus in made.made:
        await bus.stop()


@pytest.fixture
async def workers(buses: Buses) -> list[Parts]:
    """Two gateways over the same documents."""
    first = Parts(bus=await buses.add("gateway-0", start=False))
    second = Parts(bus=await buses.add("gateway-1", start=False), beside=first)
    for parts in (first, second):
        await parts.bus.start()
    return [first, second]


async def double(payload: Any) -> Any:
    return payload * 2


async def test_a_peer_answers_what_it_is_asked(buses: Buses) -> None:
    await buses.add("gateway-0", double=double)
    asker = await buses.add("")
    assert asker.peers() == ["gateway-0"]
    assert await asyncio.gather(*(asker.ask("gateway-0", "double", n, timeout_s=5) for n in range(50))) == [
        2 * n for n in range(50)
    ]


async def test_everybody_but_the_caster_is_told(buses: Buses) -> None:
    told: list[tuple[int, Any]] = []

    def listener(number: int) -> Any:
        async def hear(payload: Any) -> None:
            told.append((number, payload))

        return hear

    made = [await buses.add(f"gateway-{number}", news=listener(number)) for number in range(3)]
    made[1].cast("news", ["x", None, b"y"])
    await until(lambda: len(told) == 2)
    assert sorted(told) == [(0, ["x", None, b"y"]), (2, ["x", None, b"y"])]


async def test_one_process_alone_talks_to_nobody(buses: Buses) -> None:
    alone = await buses.add("gateway-0")
    assert alone.alone
    alone.cast("news", 1)
    assert not alone._links
    assert Bus().alone


async def test_a_peer_that_comes_later_is_found(buses: Buses) -> None:
    first = await buses.add("gateway-0", double=double)
    assert first.alone
    second = await buses.add("gateway-1", double=double)
    await until(lambda: first.peers() == ["gateway-1"])
    assert await first.ask("gateway-1", "double", 2, timeout_s=5) == 4
    assert await second.ask("gateway-0", "double", 3, timeout_s=5) == 6


async def test_a_peer_that_died_is_gone(buses: Buses) -> None:
    asker = await buses.add("gateway-0")
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(buses.folder / "gateway-7.sock"))
    left.close()  # the file stays, as of a process that was killed
    with pytest.raises(Unavailable, match="gone"):
        await asker.ask("gateway-7", "double", 1, timeout_s=5)
    asker.cast("news", 1)


async def test_a_peer_that_stops_during_a_question_is_gone(buses: Buses) -> None:
    asked = asyncio.Event()

    async def never(_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    peer = await buses.add("gateway-0", never=never)
    asker = await buses.add("")
    question = asyncio.create_task(asker.ask("gateway-0", "never", 1, timeout_s=30))
    await asyncio.wait_for(asked.wait(), 5)
    await peer.stop()
    with pytest.raises(Unavailable, match="gone"):
        await question


async def test_a_question_that_takes_too_long_fails_raises_or_is_unknown_is_unavailable(buses: Buses) -> None:
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async def wrong(_: Any) -> None:
        raise UserError("that is wrong")

    await buses.add("gateway-0", never=never, wrong=wrong)
    asker = await buses.add("")
    with pytest.raises(Unavailable, match="within"):
        await asker.ask("gateway-0", "never", 1, timeout_s=0.02)
    with pytest.raises(Unavailable, match="that is wrong"):
        await asker.ask("gateway-0", "wrong", 1, timeout_s=5)
    with pytest.raises(Unavailable, match="nobody answers"):
        await asker.ask("gateway-0", "else", 1, timeout_s=5)


@pytest.mark.parametrize(
    "noise", [b"\xff\xff\xff\xff", (FRAME_BYTES_MAX + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1", b"\0\0\0\1\x01"]
)
async def test_noise_closes_the_link_it_came_on(buses: Buses, noise: bytes) -> None:
    await buses.add("gateway-0", double=double)
    reader, writer = await asyncio.open_unix_connection(str(buses.folder / "gateway-0.sock"))
    writer.write(noise + b"\0" * 64)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    asker = await buses.add("")
    assert await asker.ask("gateway-0", "double", 1, timeout_s=5) == 2


async def test_a_folder_with_a_long_name_will_do(tmp_path: Path) -> None:
    buses = Buses(tmp_path / ("x" * 120))
    await buses.add("gateway-0", double=double)
    asker = await buses.add("")
    assert await asker.ask("gateway-0", "double", 1, timeout_s=5) == 2
    for bus in buses.made:
        await bus.stop()


async def test_a_device_that_connects_to_another_worker_loses_its_first_connection(workers: list[Parts]) -> None:
    first, second = workers
    connection, wire = await listening(first)
    first.clock.advance(1)
    await listening(second)
    await until(lambda: wire.aborted)
    connection.connection_lost(None)
    for parts in workers:
        await parts.writer.flush()
    found = await first.docs.get("presence", "a")
    assert found is not None
    assert (found.body["connected"], found.body["worker"]) == (True, "gateway-1")


async def test_a_session_follows_its_device_to_another_worker(workers: list[Parts]) -> None:
    first, second = workers
    connection, _ = await listening(first, "a", MAIL, clean_session=False)
    connection.connection_lost(None)
    await first.mailbox.send("a", Message({}, {}, b"one"))
    later, wire = second.dial()
    later.data_received(second.hello("a"))
    assert [got.body for got in await arrives(wire)] == [b"one"]
    assert later.filters == {MAIL: 1}


async def test_desired_changes_and_mail_reach_a_device_at_another_worker(workers: list[Parts]) -> None:
    first, second = workers
    _, wire = await listening(second, "a", MAIL, "$iothub/twin/PATCH/properties/desired/#")
    await first.twins.update(A, {"properties": {"desired": {"speed": 5}}})
    await first.mailbox.send("a", Message({}, {}, b"one"))
    got: list[Any] = []
    await until(lambda: bool(got.extend(found.body for found in messages(wire))) or len(got) == 2)
    assert sorted(got) == [b"one", b'{"speed":5,"$version":2}']


async def test_a_method_is_asked_where_the_device_is_by_a_process_without_devices(
    workers: list[Parts], buses: Buses
) -> None:
    console = Methods(await buses.add(""), random_bytes=lambda n: b"r" * n)
    connection, wire = await listening(workers[1])
    call = asyncio.create_task(console.invoke(A, "stop", {"now": True}))
    (asked,) = await arrives(wire)
    assert asked.json == {"now": True}
    say(connection, f"$iothub/methods/res/200/?$rid={asked.topic.partition('$rid=')[2]}", b'"done"')
    assert await call == (200, "done")


async def test_a_method_waits_for_a_device_that_connects_to_any_worker(workers: list[Parts]) -> None:
    call = asyncio.create_task(workers[0].methods.invoke(A, "stop", None, connect_timeout_s=5))
    await until(lambda: bool(workers[1].methods._arrivals))
    connection, wire = await listening(workers[1])
    (asked,) = await arrives(wire)
    say(connection, f"$iothub/methods/res/200/?$rid={asked.topic.partition('$rid=')[2]}", b"1")
    assert await call == (200, 1)


async def test_errors_of_a_method_keep_their_kind_across_the_bus(workers: list[Parts], buses: Buses) -> None:
    console = Methods(await buses.add(""), random_bytes=lambda n: b"r" * n)
    with pytest.raises(DeviceNotOnline):
        await console.invoke(A, "stop", None)
    connection, wire = await listening(workers[1])
    with pytest.raises(MethodTimeout):
        await console.invoke(A, "stop", None, response_timeout_s=0.01)
    await arrives(wire)
    call = asyncio.create_task(console.invoke(A, "stop", None))
    await arrives(wire)
    connection.connection_lost(None)
    with pytest.raises(DeviceNotOnline):
        await call


async def test_a_worker_that_starts_again_says_nothing_of_the_others_devices(workers: list[Parts]) -> None:
    first, second = workers
    await listening(first, "a")
    await listening(second, "b")
    for parts in workers:
        await parts.writer.flush()
    await first.presence.open()
    states = {found.id: found.body["connected"] for found in await first.docs.query("presence")}
    assert states == {"a": False, "b": True}


async def test_a_connection_can_be_closed_from_another_worker(workers: list[Parts]) -> None:
    first, second = workers
    _, wire = await listening(second)
    await nothing_arrives(wire)
    await first.door.disconnect(A, "asked")
    await until(lambda: wire.closed)
