"""The hub's limit is shared in turns: waits are even, nothing is lost, and nobody is dropped for waiting."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway_parts import Parts, publish, rows_of
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.ingress import Origin, Piece
from headrace.gateway.limits_fair import SHARE_ROWS_MAX, FairQueue
from headrace.wire.mqtt import codec

ORIGIN = Origin("a", None, "a", None, b"", 0)


class Someone:
    def __init__(self, name: str) -> None:
        self.name = name

    def stored(self, packet_ids: list[bytes]) -> None:
        """Nothing is told to it here."""


def piece(sender: Someone, first: int, rows: int) -> Piece:
    frames = [(0x32, b"", b"\0\1", b"%d" % number) for number in range(first, first + rows)]
    return Piece(ORIGIN, frames, 10 * rows, sender)


def names(taken: list[Piece]) -> list[str]:
    return [one.sender.name for one in taken for _ in one.frames]  # type: ignore[union-attr]


def test_a_single_message_goes_before_the_backlog_of_others() -> None:
    queue = FairQueue(1000)
    loud, quiet = Someone("loud"), Someone("quiet")
    queue.append(piece(loud, 0, 500))
    queue.append(piece(quiet, 0, 1))
    assert names(queue.take(4)) == ["loud", "loud", "quiet", "loud"]
    assert not queue.waits(quiet)


def test_who_had_a_turn_waits_until_all_others_had_theirs() -> None:
    queue = FairQueue(1000)
    senders = [Someone(str(number)) for number in range(5)]
    for sender in senders:
        queue.append(piece(sender, 0, 3))
    assert [names(queue.take(2)) for _ in range(4)] == [["0", "1"], ["2", "3"], ["4", "0"], ["1", "2"]]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), max_size=30),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_of_each_sender_the_order_stays_and_nothing_is_lost(added: list[tuple[int, int]], sizes: list[int]) -> None:
    queue = FairQueue(100)
    senders = [Someone(str(number)) for number in range(5)]
    counts = [0] * 5
    for who, rows in added:
        queue.append(piece(senders[who], counts[who], rows))
        counts[who] += rows
    taken: list[Piece] = []
    turn = 0
    while queue:
        some = queue.take(sizes[turn % len(sizes)])
        assert 0 < sum(len(one.frames) for one in some) <= sizes[turn % len(sizes)]
        taken += some
        turn += 1
    for who, sender in enumerate(senders):
        bodies = [frame[3] for one in taken if one.sender is sender for frame in one.frames]
        assert bodies == [b"%d" % number for number in range(counts[who])]
    assert sum(one.size_bytes for one in taken) == 10 * sum(counts)


def test_the_share_of_a_sender_is_smaller_the_more_of_them_wait() -> None:
    queue = FairQueue(2000)
    first = Someone("first")
    queue.append(piece(first, 0, 300))
    assert not queue.crowded(first)
    queue.append(piece(first, 300, SHARE_ROWS_MAX))
    assert queue.crowded(first)
    others = [Someone(str(number)) for number in range(99)]
    for other in others:
        queue.append(piece(other, 0, 15))
    assert not queue.crowded(others[0])
    assert queue.crowded(others[0], 0.5)


def many(id: str, rows: int) -> bytes:
    return b"".join(publish(id, "", b"x", number) for number in range(1, rows + 1))


def acknowledged(wire: Any) -> int:
    return int(wire.written.count(b"\x40\x02"))


async def seconds(parts: Parts, count: float) -> None:
    for _ in range(int(10 * count)):
        parts.clock.advance(0.1)
        for _ in range(30):
            await asyncio.sleep(0)


async def test_at_the_hubs_limit_a_quiet_device_does_not_wait_behind_a_loud_one() -> None:
    parts = Parts(per_s=10)
    loud, loud_wire = parts.connected("a", keep_alive_s=600)
    quiet, quiet_wire = parts.connected("b", keep_alive_s=600)
    work = asyncio.ensure_future(parts.ingress.run())
    loud.data_received(many("a", 100))
    await seconds(parts, 1)
    assert acknowledged(loud_wire) < 30
    quiet.data_received(publish("b", "", b"y", 7))
    await seconds(parts, 1)
    assert acknowledged(quiet_wire) == 1
    assert acknowledged(loud_wire) < 50
    await seconds(parts, 12)
    parts.ingress.close()
    await work
    assert acknowledged(loud_wire) == 100
    assert [row["_body"] for row in await rows_of(parts.log)].count(b"x") == 100


async def test_who_waits_for_the_hubs_limit_gets_its_pings_answered_and_is_not_dropped() -> None:
    parts = Parts(per_s=1)
    loud, wire = parts.connected("a", keep_alive_s=5)
    work = asyncio.ensure_future(parts.ingress.run())
    loud.data_received(many("a", 15))  # fifteen seconds of the limit
    for _ in range(3):
        await seconds(parts, 4)
        loud.data_received(codec.PING_REQUEST)
        parts.door.sweep_once()
    assert wire.written.count(codec.PING_RESPONSE) == 3
    assert not wire.closed
    await seconds(parts, 10)
    parts.ingress.close()
    await work
    assert acknowledged(wire) == 15


async def test_above_its_share_a_connection_is_not_read_and_not_dropped_and_goes_on_later() -> None:
    parts = Parts(per_s=1)
    loud, wire = parts.connected("a", keep_alive_s=5)
    _, other_wire = parts.connected("b", keep_alive_s=600)
    work = asyncio.ensure_future(parts.ingress.run())
    for number in range(1, 20):
        loud.data_received(publish("a", "", b"x", number))
    assert not wire.paused
    loud.data_received(many("a", 25))
    assert wire.paused
    await seconds(parts, 9)
    parts.door.sweep_once()
    assert not wire.closed  # its pings cannot be heard
    await seconds(parts, 40)
    assert not wire.paused
    assert not other_wire.paused
    parts.ingress.close()
    await work
    assert acknowledged(wire) == 44
