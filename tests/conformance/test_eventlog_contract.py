"""What every event log promises, run against each of them."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.errors import UserError
from headrace.core.identity import message_event_id, partition_of
from headrace.core.schema import EVENT_SCHEMA, LOG_SCHEMA, EventBatch, event_batch
from headrace.eventlog.contract import EventLog, Positions, Slice, Trimmed
from headrace.eventlog.memory import MemoryEventLog
from headrace.eventlog.sqlite import SqliteEventLog

ZEROS = (0, 0, 0, 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[EventLog]:
    made: EventLog = MemoryEventLog(clock) if request.param == "memory" else SqliteEventLog(tmp_path, clock)
    yield made
    await made.close()


def events(first: int, count: int, *, devices: int = 7, resendable: bool = False) -> EventBatch:
    """Events number `first` and following; the number is the body."""
    names = [f"device-{number % devices}" for number in range(first, first + count)]
    numbers = range(first, first + count)
    ids = [
        message_event_id(device, None, str(number)) if resendable else f"h{number}"
        for device, number in zip(names, numbers, strict=True)
    ]
    return event_batch({"_event_id": ids, "_device": names, "_body": [str(number).encode() for number in numbers]})


TICK = events(0, 0)


def numbers(batch: EventBatch) -> list[int]:
    return [int(body) for body in batch.column("_body").to_pylist()]


async def pieces(log: EventLog, *, rows_max: int, start: Positions = ()) -> list[Slice]:
    found: list[Slice] = []
    while True:
        piece = await log.read_merged("s", found[-1].positions if found else start, rows_max=rows_max, wait_s=0)
        if not piece.batch.num_rows:
            return found
        found.append(piece)


async def test_an_append_answers_with_rows_stamp_and_positions(log: EventLog, clock: ManualClock) -> None:
    answer = await log.append("s", events(0, 10))
    assert (answer.rows, answer.duplicates, answer.enqueued) == (10, 0, clock.now())
    assert sum(answer.positions) == 10
    assert await log.bounds("s") == (ZEROS, answer.positions)


async def test_rows_come_back_as_they_were_given_with_their_place(log: EventLog, clock: ManualClock) -> None:
    given = events(0, 50)
    await log.append("s", given)
    batch = (await log.read_merged("s", ZEROS, rows_max=1000, wait_s=0)).batch
    assert batch.schema.equals(LOG_SCHEMA)
    assert batch.column("_enqueued").to_pylist() == [clock.now()] * 50
    kept = [name for name in EVENT_SCHEMA.names if name != "_enqueued"]
    by_number = {row["_body"]: row for row in given.select(kept).to_pylist()}
    for row in batch.to_pylist():
        assert {name: row[name] for name in kept} == by_number[row["_body"]]
        assert row["_partition"] == partition_of(row["_device"], 4)


async def test_rows_of_one_device_keep_their_order(log: EventLog) -> None:
    for first in range(0, 100, 10):
        await log.append("s", events(first, 10))
    batch = (await log.read_merged("s", ZEROS, rows_max=1000, wait_s=0)).batch
    for device in range(7):
        assert [number for number in numbers(batch) if number % 7 == device] == list(range(device, 100, 7))


async def test_offsets_count_up_by_one_in_each_partition(log: EventLog) -> None:
    for first in range(0, 60, 12):
        await log.append("s", events(first, 12))
    _, ends = await log.bounds("s")
    for partition, end in enumerate(ends):
        batch = await log.read("s", partition, 0, rows_max=1000, wait_s=0)
        assert batch.column("_offset").to_pylist() == list(range(end))
        assert batch.column("_partition").to_pylist() == [partition] * end


async def test_stamps_rise_with_every_batch_though_the_clock_stands(log: EventLog) -> None:
    stamps = [(await log.append("s", events(number, 1))).enqueued for number in range(5)]
    assert stamps == list(range(stamps[0], stamps[0] + 5))


async def test_appends_at_the_same_moment_each_get_their_own_stamp(log: EventLog) -> None:
    answers = await asyncio.gather(*(log.append("s", events(first, 10)) for first in range(0, 200, 10)))
    assert len({answer.enqueued for answer in answers}) == 20
    assert sorted(numbers((await pieces(log, rows_max=1000))[0].batch)) == list(range(200))


async def test_the_merged_order_is_by_stamp_then_partition_then_offset(log: EventLog) -> None:
    for first in range(0, 90, 30):
        await log.append("s", events(first, 30))
    batch = (await log.read_merged("s", ZEROS, rows_max=1000, wait_s=0)).batch
    order = list(zip(*(batch.column(name).to_pylist() for name in ("_enqueued", "_partition", "_offset")), strict=True))
    assert order == sorted(order)
    assert len(set(order)) == 90


@pytest.mark.parametrize("rows_max", [1, 3, 7, 20, 1000])
async def test_reading_in_pieces_equals_reading_at_once(log: EventLog, rows_max: int) -> None:
    for first, count in [(0, 5), (5, 40), (45, 1), (46, 14)]:
        await log.append("s", events(first, count))
        await log.append("s", TICK)
    whole = (await log.read_merged("s", (), rows_max=1000, wait_s=0)).batch
    found = await pieces(log, rows_max=rows_max)
    assert [row for piece in found for row in piece.batch.to_pylist()] == whole.to_pylist()
    assert found[-1].positions == (await log.bounds("s"))[1]


async def test_the_frontier_never_passes_a_row_that_was_not_returned(log: EventLog) -> None:
    for first in range(0, 40, 10):
        await log.append("s", events(first, 10))
    whole = (await log.read_merged("s", (), rows_max=1000, wait_s=0)).batch.column("_enqueued").to_pylist()
    returned = 0
    for piece in await pieces(log, rows_max=3):
        returned += piece.batch.num_rows
        assert all(stamp > piece.frontier for stamp in whole[returned:])
        assert piece.frontier >= whole[returned - 1] - 1
    assert piece.frontier == whole[-1]


async def test_until_stops_exactly_where_an_earlier_piece_ended(log: EventLog) -> None:
    for first in range(0, 60, 20):
        await log.append("s", events(first, 20))
    for cut in await pieces(log, rows_max=7):
        replay = await log.read_merged("s", (), rows_max=1000, wait_s=0, until=cut.positions)
        assert replay.positions == cut.positions
        assert replay.frontier == cut.frontier
    first, second = (await pieces(log, rows_max=7))[:2]
    replay = await log.read_merged("s", first.positions, rows_max=1000, wait_s=0, until=second.positions)
    assert replay.batch.equals(second.batch)


async def test_until_already_reached_returns_at_once_and_nothing(log: EventLog) -> None:
    answer = await log.append("s", events(0, 20))
    await log.append("s", events(20, 20))
    piece = await log.read_merged("s", answer.positions, rows_max=10, wait_s=60, until=answer.positions)
    assert (piece.batch.num_rows, piece.positions, piece.frontier) == (0, answer.positions, answer.enqueued)


async def test_ticks_after_until_are_not_seen(log: EventLog) -> None:
    answer = await log.append("s", events(0, 20))
    await log.append("s", TICK)
    assert (await log.read_merged("s", (), rows_max=10, wait_s=0, until=answer.positions)).frontier <= answer.enqueued
    piece = await log.read_merged("s", (), rows_max=100, wait_s=0, until=answer.positions)
    assert piece.frontier == answer.enqueued


async def test_columns_leave_out_the_others(log: EventLog) -> None:
    await log.append("s", events(0, 20))
    piece = await log.read_merged("s", (), rows_max=100, wait_s=0, columns=["_offset", "_body"])
    assert piece.batch.schema.names == ["_body", "_offset"]
    assert sorted(numbers(piece.batch)) == list(range(20))
    with pytest.raises(UserError, match="did you mean '_body'"):
        await log.read_merged("s", (), rows_max=100, wait_s=0, columns=["body"])


async def test_a_tick_moves_the_frontier_and_stores_no_row(log: EventLog, clock: ManualClock) -> None:
    stored = await log.append("s", events(0, 5))
    clock.advance(10)
    tick = await log.append("s", TICK)
    assert (tick.rows, tick.positions, tick.enqueued) == (0, stored.positions, clock.now())
    assert (await log.read_merged("s", (), rows_max=100, wait_s=0)).frontier == tick.enqueued


async def test_a_waiting_reader_hears_of_a_row(log: EventLog) -> None:
    waiting = asyncio.create_task(log.read_merged("s", (), rows_max=100, wait_s=60))
    await asyncio.sleep(0)
    await log.append("s", events(0, 5))
    assert (await waiting).batch.num_rows == 5


async def test_a_waiting_reader_hears_of_a_tick(log: EventLog) -> None:
    stored = await log.append("s", events(0, 5))
    waiting = asyncio.create_task(log.read_merged("s", stored.positions, rows_max=100, wait_s=60))
    await asyncio.sleep(0)
    tick = await log.append("s", TICK)
    piece = await waiting
    assert (piece.batch.num_rows, piece.frontier, piece.positions) == (0, tick.enqueued, stored.positions)


async def test_a_reader_at_the_end_hears_of_each_tick_once(log: EventLog) -> None:
    stored = await log.append("s", events(0, 5))
    tick = await log.append("s", TICK)
    piece = await log.read_merged("s", stored.positions, rows_max=100, wait_s=60)
    assert piece.frontier == tick.enqueued
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await log.read_merged("s", piece.positions, rows_max=100, wait_s=60)
    again = await log.read_merged("s", piece.positions, rows_max=100, wait_s=0)
    assert (again.batch.num_rows, again.frontier) == (0, tick.enqueued)


async def test_a_waiting_reader_of_one_partition_hears_of_its_row(log: EventLog) -> None:
    partition = partition_of("device-0", 4)
    waiting = asyncio.create_task(log.read("s", partition, 0, rows_max=100, wait_s=60))
    await asyncio.sleep(0)
    await log.append("s", events(0, 1))
    assert numbers(await waiting) == [0]


async def test_a_wait_that_nothing_ends_is_bounded(log: EventLog) -> None:
    async with asyncio.timeout(10):
        assert (await log.read_merged("s", (), rows_max=10, wait_s=0.02)).batch.num_rows == 0
        assert (await log.read("s", 0, 0, rows_max=10, wait_s=0.02)).num_rows == 0


async def test_one_partition_is_read_from_any_offset(log: EventLog) -> None:
    for first in range(0, 200, 20):
        await log.append("s", events(first, 20))
    whole = await log.read("s", 1, 0, rows_max=1000, wait_s=0)
    for offset in range(whole.num_rows + 1):
        part = await log.read("s", 1, offset, rows_max=5, wait_s=0)
        assert part.to_pylist() == whole.slice(offset, 5).to_pylist()


async def test_the_same_epoch_again_is_a_no_op_with_the_first_answer(log: EventLog) -> None:
    first = await log.append("s", events(0, 10), producer="job", epoch=3)
    await log.append("s", events(10, 10), producer="other", epoch=3)
    assert await log.append("s", events(0, 10), producer="job", epoch=3) == first
    assert sum((await log.bounds("s"))[1]) == 20


async def test_an_older_epoch_stores_nothing(log: EventLog) -> None:
    await log.append("s", events(0, 10), producer="job", epoch=3)
    latest = await log.append("s", events(10, 10), producer="job", epoch=4)
    older = await log.append("s", events(0, 10), producer="job", epoch=3)
    assert (older.rows, older.positions) == (0, latest.positions)
    assert (await log.append("s", events(20, 10), producer="job", epoch=9)).rows == 10


async def test_a_resent_message_is_stored_once(log: EventLog) -> None:
    first = await log.append("s", events(0, 30, resendable=True))
    second = await log.append("s", events(20, 30, resendable=True))
    assert (first.rows, first.duplicates, second.rows, second.duplicates) == (30, 0, 20, 10)
    assert sorted(numbers((await pieces(log, rows_max=1000))[0].batch)) == list(range(50))


async def test_a_message_twice_in_one_batch_is_stored_once(log: EventLog) -> None:
    batch = events(0, 30, resendable=True)
    answer = await log.append("s", batch.take([0, 1, 2, 1, 0, 0]))
    assert (answer.rows, answer.duplicates) == (3, 3)


async def test_an_id_that_only_looks_like_a_message_s_is_deduplicated_too(log: EventLog) -> None:
    ids = ["m1", "m" + "A" * 32, "m" + "0" * 32, "m", "m1" * 40]
    batch = event_batch({"_event_id": ids, "_device": ["d"] * 5, "_body": [b""] * 5})
    assert (await log.append("s", batch)).rows == 5
    assert (await log.append("s", batch.slice(1))).duplicates == 4


async def test_only_resendable_ids_are_deduplicated(log: EventLog) -> None:
    await log.append("s", events(0, 10))
    assert (await log.append("s", events(0, 10))).rows == 10


async def test_an_id_is_forgotten_when_the_window_has_passed(log: EventLog, clock: ManualClock) -> None:
    batch = events(0, 10, resendable=True)
    await log.append("s", batch)
    clock.advance(600)
    assert (await log.append("s", batch)).duplicates == 10
    clock.advance(0.001)
    assert (await log.append("s", batch)).rows == 10
    assert (await log.append("s", batch)).duplicates == 10


async def test_an_id_is_remembered_per_stream(log: EventLog) -> None:
    await log.append("s", events(0, 10, resendable=True))
    assert (await log.append("t", events(0, 10, resendable=True))).rows == 10


async def test_received_is_stored_and_duplicates_in_every_partition(log: EventLog) -> None:
    await log.append("s", events(0, 30, resendable=True))
    await log.append("s", events(20, 30, resendable=True))
    await log.append("s", events(0, 5), producer="job", epoch=1)
    await log.append("s", events(0, 5), producer="job", epoch=1)
    stats = await log.stats("s")
    assert stats.next == tuple(a - b for a, b in zip(stats.received, stats.duplicates, strict=True))
    assert (sum(stats.received), sum(stats.duplicates), stats.earliest) == (65, 10, ZEROS)
    assert stats.bytes_on_disk > 0


async def test_groups_remember_their_positions_apart(log: EventLog) -> None:
    await log.append("s", events(0, 10))
    assert await log.committed("a", "s") == ZEROS
    await log.commit("a", "s", (1, 2, 3, 4))
    await log.commit("b", "s", (4, 3, 2, 1))
    await log.commit("a", "s", (2, 2, 3, 4))
    assert await log.committed("a", "s") == (2, 2, 3, 4)
    assert await log.committed("b", "s") == (4, 3, 2, 1)
    assert await log.committed("a", "t") == ZEROS


async def test_positions_at_a_time_start_with_the_first_event_enqueued_then(log: EventLog, clock: ManualClock) -> None:
    answers = []
    for first in range(0, 100, 10):
        clock.advance(1)
        answers.append(await log.append("s", events(first, 10)))
    assert await log.positions_at("s", 0) == ZEROS
    for before, answer in itertools.pairwise(answers):
        assert await log.positions_at("s", answer.enqueued) == before.positions
        assert await log.positions_at("s", answer.enqueued - 1) == before.positions
    assert await log.positions_at("s", clock.now() + 1) == answers[-1].positions


async def test_trim_drops_whole_batches_before_a_time(log: EventLog, clock: ManualClock) -> None:
    answers = []
    for first in range(0, 100, 10):
        clock.advance(1)
        answers.append(await log.append("s", events(first, 10)))
    await log.trim("s", answers[4].enqueued)
    assert await log.bounds("s") == (answers[3].positions, answers[-1].positions)
    piece = await log.read_merged("s", (), rows_max=1000, wait_s=0)
    assert sorted(numbers(piece.batch)) == list(range(40, 100))
    assert (await log.stats("s")).earliest == answers[3].positions


async def test_reading_what_was_trimmed_is_an_error(log: EventLog, clock: ManualClock) -> None:
    answer = await log.append("s", events(0, 40))
    clock.advance(1)
    await log.append("s", events(40, 40))
    await log.trim("s", clock.now())
    with pytest.raises(Trimmed, match="'s' keeps offsets from"):
        await log.read_merged("s", ZEROS, rows_max=10, wait_s=0)
    with pytest.raises(Trimmed):
        await log.read("s", 1, answer.positions[1] - 1, rows_max=10, wait_s=0)
    assert (await log.read("s", 1, answer.positions[1], rows_max=10, wait_s=0)).num_rows


async def test_offsets_and_stamps_go_on_after_everything_was_trimmed(log: EventLog, clock: ManualClock) -> None:
    answer = await log.append("s", events(0, 40))
    await log.trim("s", clock.now() + TICKS_PER_S)
    assert await log.bounds("s") == (answer.positions, answer.positions)
    assert (await log.read_merged("s", (), rows_max=10, wait_s=0)).frontier == answer.enqueued
    following = await log.append("s", events(40, 40))
    assert following.enqueued == answer.enqueued + 1
    batch = (await log.read_merged("s", (), rows_max=100, wait_s=0)).batch
    assert sorted(numbers(batch)) == list(range(40, 80))


async def test_streams_are_listed_once_they_have_been_used(log: EventLog) -> None:
    await log.append("telemetry", events(0, 1))
    await log.read_merged("alerts.open", (), rows_max=1, wait_s=0)
    assert await log.streams() == ["alerts.open", "telemetry"]


async def test_what_is_no_event_batch_is_refused(log: EventLog) -> None:
    with pytest.raises(UserError, match="not an event batch"):
        await log.append("s", events(0, 5).select(["_device"]))
    with pytest.raises(UserError, match="null values in _body"):
        await log.append("s", event_batch({"_event_id": ["a"], "_device": ["d"], "_body": [None]}))
    with pytest.raises(UserError, match="2 positions for the 4 partitions"):
        await log.read_merged("s", (0, 0), rows_max=10, wait_s=0)
    with pytest.raises(UserError, match="partitions 0 to 3, not 4"):
        await log.read("s", 4, 0, rows_max=10, wait_s=0)
    with pytest.raises(UserError, match="rows_max"):
        await log.read_merged("s", (), rows_max=0, wait_s=0)
    assert (await log.append("s", events(0, 5))).rows == 5
