"""De-duplication: the index, and that it survives restarts and other writers."""

import numpy as np
import pyarrow as pa
from eventlog_given import Events, OpenLog
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.clock import ManualClock
from headrace.core.identity import message_event_id
from headrace.eventlog.recent import RecentIds, resendable

WINDOW = 100


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(0, 60), max_size=12)), max_size=30
    )  # time passed, numbers of the ids that come then
)
def test_the_index_knows_exactly_the_ids_of_the_window(steps: list[tuple[int, list[int]]]) -> None:
    recent, stored_at, now = RecentIds(WINDOW), dict[int, int](), 0
    for passed, numbers in steps:
        now += passed + 1
        keys = np.array([(number // 3, number) for number in numbers], dtype=np.uint64).reshape(-1, 2)  # words collide
        expected = []
        for index, number in enumerate(numbers):
            expected.append(now - stored_at.get(number, -WINDOW - 1) <= WINDOW or number in numbers[:index])
        found = recent.duplicates(keys, now)
        assert found.tolist() == expected
        recent.add(keys[~found], np.full(int((~found).sum()), now))
        stored_at |= {number: now for number, again in zip(numbers, expected, strict=True) if not again}


def test_an_id_takes_24_bytes_and_is_let_go_after_the_window() -> None:
    recent, rng = RecentIds(WINDOW), np.random.default_rng(1)
    for now in range(10 * WINDOW):
        keys = rng.integers(0, 1 << 63, (50, 2), dtype=np.uint64)
        recent.add(keys, np.full(50, now))
    assert recent.nbytes == 24 * len(recent)
    assert len(recent) <= 1.3 * 50 * WINDOW


def test_keys_are_equal_exactly_where_ids_are() -> None:
    one = message_event_id("d", None, "1")
    ids = [one, one.upper().replace("M", "m", 1), "m", "m1", "mz" + one[2:], one + "0", one[:-1], "h1", one]
    mask, keys = resendable(pa.array(ids))
    assert mask.tolist() == [True] * 7 + [False, True]
    assert len({tuple(key) for key in keys.tolist()}) == 7
    assert keys[0].tolist() == keys[-1].tolist()
    _, alone = resendable(pa.array(["m", *ids]).slice(1, 1))
    assert alone.tolist() == [keys[0].tolist()]


async def test_a_restart_forgets_no_id_of_the_window(open_log: OpenLog, events: Events, clock: ManualClock) -> None:
    log = open_log()
    await log.append("s", events(0, 50))
    clock.advance(400)
    for first in range(50, 5000, 50):
        await log.append("s", events(first, 50))
    await log.close()
    clock.advance(300)  # the first batch is 700 s old by now, the others 300 s
    again = open_log()
    answer = await again.append("s", events(0, 5050))
    assert (answer.rows, answer.duplicates) == (100, 4950)


async def test_what_another_process_stored_is_a_duplicate_here(open_log: OpenLog, events: Events) -> None:
    one, other = open_log(), open_log()
    await one.append("s", events(0, 10))
    assert (await other.append("s", events(5, 10))).duplicates == 5
    assert (await one.append("s", events(10, 10))).duplicates == 5
    assert (await other.append("s", events(0, 25))).rows == 5
    stats = await one.stats("s")
    assert sum(stats.next) == 25
    assert sum(stats.received) - sum(stats.duplicates) == 25
