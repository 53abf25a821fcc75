"""A job's books add up to the rows that came in, also when a row is refused long after it was admitted."""

from __future__ import annotations

import pyarrow as pa

from headrace.core.flow import LedgerEntry
from headrace.core.schema import LOG_SCHEMA, EventBatch
from headrace.jobs.books import ALL, Books
from headrace.jobs.inputs import Portion
from headrace.ledger.totals import missing


def rows(first: int, count: int) -> EventBatch:
    """Rows of partition 0 with offsets from `first` on."""
    made = {"_partition": [0] * count, "_offset": list(range(first, first + count))}
    empty: dict[pa.DataType, object] = {pa.string(): "", pa.int64(): 0, pa.binary(): b""}
    arrays = [pa.array(made.get(field.name, [empty.get(field.type)] * count), field.type) for field in LOG_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def portion(batch: EventBatch, end: int) -> Portion:
    return Portion([("telemetry", batch)], {}, {"telemetry": (end,)}, {})


def close(books: Books, epoch: int, end: int) -> list[LedgerEntry]:
    return books.close(epoch, {"telemetry": (end,)}, {"hot": "hot"})


def test_rows_refused_later_than_admitted_are_booked_with_the_next_rows() -> None:
    books = Books("test", {"telemetry": (0,)}, {})
    books.count_in(portion(rows(0, 5), 5))
    (first,) = close(books, 1, 5)
    books.count_aside("telemetry", rows(1, 3), "cast_failed")
    books.count_in(portion(rows(5, 2), 7))
    (second,) = close(books, 2, 7)
    kept = books.kept()
    after_restart = Books("test", {"telemetry": (7,)}, kept)
    after_restart.count_in(portion(rows(7, 4), 11))
    (third,) = close(after_restart, 3, 11)
    assert [entry.rows_out for entry in (first, second, third)] == [5, 0, 3]
    assert [entry.set_aside for entry in (first, second, third)] == [{}, {"cast_failed": 2}, {"cast_failed": 1}]
    assert [missing(entry) for entry in (first, second, third)] == [0, 0, 0]


def test_a_row_that_the_log_counted_and_the_query_never_saw_is_a_gap() -> None:
    books = Books("test", {"telemetry": (0,)}, {})
    books.count_in(portion(rows(0, 5), 6))
    (entry,) = close(books, 1, 6)
    assert missing(entry) == 1


def test_rows_of_a_window_that_failed_never_came_in() -> None:
    books = Books("test", {"telemetry": (0,)}, {})
    books.count_in(portion(rows(0, 5), 5))
    books.count_aside("telemetry", rows(-1, 1), "cast_failed")
    (entry,) = close(books, 1, 5)
    assert (entry.rows_out, entry.set_aside) == (5, {})


def test_rows_handed_to_an_output_go_on_where_the_last_page_ended() -> None:
    books = Books("test", {"telemetry": (0,)}, {"handed": {"hot": 40}})
    books.count_out("hot", 2)
    assert close(books, 7, 0) == [LedgerEntry("output:test", "hot", ALL, 7, 40, 42, 2, {})]
