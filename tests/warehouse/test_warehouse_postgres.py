"""The warehouse on our own PostgreSQL and on Debian's: the same answers."""

import json
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.core.clock import SystemClock, from_iso
from headrace.core.errors import DataError, Unavailable, UserError
from headrace.core.schema import LOG_SCHEMA, EventBatch, event_batch
from headrace.warehouse.postgres import PostgresWarehouse
from headrace.warehouse.rows import AGGREGATE, TELEMETRY, aggregate_rows, telemetry_rows
from headrace.warehouse.tables import Migration, migrate

TIME = from_iso("2025-01-31T08:00:00.123456Z")


def log_batch(bodies: list[bytes], first: int = 0, entities: list[str] | None = None) -> EventBatch:
    numbers = range(first, first + len(bodies))
    batch = event_batch(
        {
            "_event_id": [f"e{number}" for number in numbers],
            "_device": ["pump-1"] * len(bodies),
            "_entity_id": entities or [f"machine-{number % 3}" for number in numbers],
            "_site": ["north"] * len(bodies),
            "_enqueued": [TIME] * len(bodies),
            "_body": bodies,
        }
    )
    place = [pa.array([number % 2 for number in numbers], pa.int32()), pa.array(numbers, pa.int64())]
    return pa.RecordBatch.from_arrays([*batch.columns, *place], schema=LOG_SCHEMA)


def telemetry(bodies: list[bytes], first: int = 0, entities: list[str] | None = None) -> pa.Table:
    return telemetry_rows(log_batch(bodies, first, entities), "telemetry")[0]


def bodies(count: int) -> list[bytes]:
    return [json.dumps({"t": number, "text": "a,\"b'\n\\N;ä€"}).encode() for number in range(count)]


def stored(warehouse: PostgresWarehouse) -> dict[str, Any]:
    return {row["event_id"]: row["event"] for row in warehouse.query("SELECT event_id, event FROM machine_telemetry")}


def test_loaded_rows_come_back_with_time_and_place(warehouse: PostgresWarehouse) -> None:
    assert warehouse.load(TELEMETRY, telemetry(bodies(2)), producer="p", epoch=0) == (2, 0, ())
    (row,) = warehouse.query("SELECT * FROM machine_telemetry WHERE event_id = %s", ("e1",))
    assert row == {
        "machine_id": "machine-1",
        "event_id": "e1",
        "event_type": "telemetry",
        "site": "north",
        "enqueued": datetime(2025, 1, 31, 8, 0, 0, 123456, tzinfo=UTC),
        "event": {"t": 1, "text": "a,\"b'\n\\N;ä€"},
        "stream": "telemetry",
        "log_partition": 1,
        "log_offset": 1,
    }


def test_an_epoch_that_was_loaded_stores_nothing_again(
    warehouse: PostgresWarehouse, connect: Callable[[], PostgresWarehouse]
) -> None:
    warehouse.load(TELEMETRY, telemetry(bodies(3)), producer="p", epoch=7, positions=[2, 1])
    assert connect().load(TELEMETRY, telemetry(bodies(3)), producer="p", epoch=7) == (0, 3, ())
    assert warehouse.load(TELEMETRY, telemetry(bodies(2), first=10), producer="p", epoch=6) == (0, 2, ())
    assert warehouse.last_epoch("p") == 7
    assert warehouse.last_epoch("q") == -1
    assert warehouse.query("SELECT positions FROM consumer") == [{"positions": [2, 1]}]
    assert len(stored(warehouse)) == 3


def test_an_event_that_is_there_is_known_whatever_the_epoch(warehouse: PostgresWarehouse) -> None:
    warehouse.load(TELEMETRY, telemetry(bodies(3)), producer="p", epoch=0)
    twice = pa.concat_tables([telemetry(bodies(2), first=2), telemetry(bodies(1), first=3)])
    assert warehouse.load(TELEMETRY, twice, producer="q", epoch=0) == (1, 2, ())


def test_an_epoch_brought_by_two_at_once_is_stored_once(
    warehouse: PostgresWarehouse, connect: Callable[[], PostgresWarehouse]
) -> None:
    start, answers = threading.Barrier(4), []

    def bring(mine: PostgresWarehouse) -> None:
        start.wait(10)
        answers.append(mine.load(TELEMETRY, telemetry(bodies(50)), producer="p", epoch=0)[:2])

    threads = [threading.Thread(target=bring, args=[connect()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [(0, 50), (0, 50), (0, 50), (50, 0)]


def test_a_load_that_fails_halfway_leaves_neither_rows_nor_epoch(warehouse: PostgresWarehouse) -> None:
    rows = telemetry([b'{"t": 1}'])
    broken = rows.set_column(rows.schema.get_field_index("event"), "event", pa.array(["{no json"]))
    with pytest.raises(DataError):
        warehouse.load(TELEMETRY, broken, producer="p", epoch=0)
    assert (warehouse.last_epoch("p"), stored(warehouse)) == (-1, {})
    assert warehouse.load(TELEMETRY, rows, producer="p", epoch=0).new == 1


def test_bodies_that_jsonb_refuses_are_stored_wrapped(warehouse: PostgresWarehouse) -> None:
    odd = [
        b'{"a": "x\\u0000y"}',
        b"{broken",
        b"\xff\xfe",
        b"a\x00b",
        b"",
        b"[1, 2]",
        b'{"a": "\\\\u0000"}',
        b'{"n": NaN}',
    ]
    assert warehouse.load(TELEMETRY, telemetry(odd), producer="p", epoch=0) == (8, 0, ())
    assert stored(warehouse) == {
        "e0": {"_raw": '{"a": "x\\u0000y"}'},
        "e1": {"_raw": "{broken"},
        "e2": {"_raw_base64": "//4="},
        "e3": {"_raw_base64": "YQBi"},
        "e4": {"_raw": ""},
        "e5": [1, 2],
        "e6": {"a": "\\u0000"},
        "e7": {"_raw": '{"n": NaN}'},
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_body_breaks_a_batch(warehouse: PostgresWarehouse, seed: int) -> None:
    rng = random.Random(seed)
    pieces = [
        b"{",
        b"}",
        b'"a"',
        b":",
        b"1e308",
        b"-0",
        b"\\u0000",
        b"\\ud800",
        b"\x00",
        b"\xff",
        b",",
        b"9" * 400,
        b"[" * 1000,
    ]
    odd = [b"".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in range(100)]
    odd += [b'{"a":' + b"".join(rng.choices(pieces, k=2)) + b"}" for _ in range(200)]
    odd += [b'{"a":' + b"[" * depth + b"]" * depth + b"}" for depth in (10, 900, 5000)]
    loaded = warehouse.load(TELEMETRY, telemetry(odd), producer="p", epoch=0)
    assert loaded == (len(odd), 0, ()), f"seed {seed}"


def test_rows_whose_keys_cannot_be_stored_are_bad_and_the_others_go_in(warehouse: PostgresWarehouse) -> None:
    rows = telemetry(bodies(4), entities=["a", "b\0", "c" * 301, "ä" * 300])
    loaded = warehouse.load(TELEMETRY, rows, producer="p", epoch=0)
    assert (loaded.new, loaded.known) == (2, 0)
    assert [(problem.row, problem.reason) for problem in loaded.bad] == [(1, "nul_in_key"), (2, "key_too_long")]
    assert warehouse.load(TELEMETRY, rows, producer="p", epoch=0) == (0, 2, loaded.bad)


def test_counts_are_by_stream_and_partition_and_see_a_deleted_row(warehouse: PostgresWarehouse, url: str) -> None:
    warehouse.load(TELEMETRY, telemetry(bodies(5)), producer="p", epoch=0)
    assert warehouse.counts(TELEMETRY) == {("telemetry", 0): 3, ("telemetry", 1): 2}
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM machine_telemetry WHERE event_id = 'e4'")
    assert warehouse.counts(TELEMETRY) == {("telemetry", 0): 2, ("telemetry", 1): 2}


def test_aggregates_are_stored_with_their_measures(warehouse: PostgresWarehouse) -> None:
    documents: list[Any] = [
        {
            "windowEnd": "2025-01-31T08:00:10Z",
            "requirement": "cooling",
            "factory": "f1",
            "machineId": "m1",
            "avg_t": 7.5,
        },
        {"window_end": "2025-01-31T08:00:10.5+01:00", "MACHINE_ID": 5, "n": 2, "factory": None},
        {"requirement": "no window"},
        {"windowEnd": "yesterday"},
        [1],
    ]
    rows, bad = aggregate_rows(log_batch([json.dumps(document).encode() for document in documents]), "aggregates")
    assert [(problem.row, problem.reason) for problem in bad] == [(row, "not_an_aggregate") for row in (2, 3, 4)]
    assert warehouse.load(AGGREGATE, rows, producer="p", epoch=0) == (2, 0, ())
    found = warehouse.query(
        "SELECT window_end, requirement, factory, machine_id, measures, event_id, stream, log_offset"
        " FROM maintenance_aggregate ORDER BY event_id"
    )
    assert [tuple(row.values()) for row in found] == [
        (datetime(2025, 1, 31, 8, 0, 10, tzinfo=UTC), "cooling", "f1", "m1", {"avg_t": 7.5}, "e0", "aggregates", 0),
        (datetime(2025, 1, 31, 7, 0, 10, 500_000, tzinfo=UTC), None, None, "5", {"n": 2}, "e1", "aggregates", 1),
    ]


def test_an_aggregate_without_a_machine_is_about_its_entity() -> None:
    rows, _ = aggregate_rows(log_batch([b'{"windowEnd": "2025-01-31T08:00:10Z"}'], entities=["plant-9"]), "s")
    assert rows["machine_id"].to_pylist() == ["plant-9"]


def test_telemetry_is_spread_over_eight_partitions_by_machine(warehouse: PostgresWarehouse) -> None:
    machines = [f"machine-{number}" for number in range(200)]
    warehouse.load(TELEMETRY, telemetry(bodies(200), entities=machines), producer="p", epoch=0)
    found = warehouse.query("SELECT tableoid::regclass::text AS part, count(*) FROM machine_telemetry GROUP BY 1")
    assert len(found) == 8


def test_metadata_is_replaced_by_id_and_unforeseen_keys_are_kept(warehouse: PostgresWarehouse) -> None:
    assert warehouse.upsert("machine", [{"id": "m1", "factory": "f1", "power": 5}, {"id": "m2"}]) == 2
    warehouse.upsert("machine", [{"id": "m1", "factory": "f2", "colour": "red"}])
    assert warehouse.query("SELECT * FROM machine ORDER BY id") == [
        {"id": "m1", "factory": "f2", "kind": None, "attributes": {"colour": "red"}},
        {"id": "m2", "factory": None, "kind": None, "attributes": {}},
    ]
    warehouse.upsert("maintenance_criterion", [{"id": "c", "requirement": "r", "field": "t", "threshold": 80.5}])
    assert warehouse.upsert("factory", []) == 0
    with pytest.raises(UserError, match="no id"):
        warehouse.upsert("factory", [{"name": "nameless"}])


def test_preparing_twice_and_at_once_makes_the_tables_once(empty_url: str) -> None:
    opened = [PostgresWarehouse(empty_url, SystemClock()) for _ in range(4)]
    threads = [threading.Thread(target=warehouse.prepare) for warehouse in opened]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = opened[0].query("SELECT number FROM headrace_migration ORDER BY number")
    for warehouse in opened:
        warehouse.close()
    assert [row["number"] for row in found] == [1, 2]


def test_a_migration_that_was_edited_afterwards_is_refused(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        first = Migration(1, "0001_x.sql", "CREATE TABLE x ()")
        assert migrate(connection, [first]) == ["0001_x.sql"]
        assert migrate(connection, [first, Migration(2, "0002_y.sql", "CREATE TABLE y ()")]) == ["0002_y.sql"]
        with pytest.raises(UserError, match="with another text"):
            migrate(connection, [first._replace(text="CREATE TABLE z ()")])


def test_a_query_only_reads(warehouse: PostgresWarehouse) -> None:
    with pytest.raises(UserError, match="read-only"):
        warehouse.query("DELETE FROM machine_telemetry")


def test_an_error_in_a_query_says_where(warehouse: PostgresWarehouse) -> None:
    with pytest.raises(UserError, match='column "nope" does not exist at character 8'):
        warehouse.query("SELECT nope FROM machine")


def test_unknown_tables_are_named_with_the_nearest(warehouse: PostgresWarehouse) -> None:
    for call in (
        lambda: warehouse.load("machine_telemetri", telemetry([]), producer="p", epoch=0),
        lambda: warehouse.counts("machine_telemetri"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert "machine_telemetry" in caught.value.hint


def test_a_statement_that_takes_too_long_is_given_up(url: str) -> None:
    warehouse = PostgresWarehouse(url, SystemClock(), statement_timeout_s=0.05)
    with pytest.raises(Unavailable, match="too long"):
        warehouse.query("SELECT pg_sleep(10)")
    warehouse.close()


def test_a_lost_connection_is_unavailable_and_the_next_call_opens_another(
    warehouse: PostgresWarehouse, url: str
) -> None:
    warehouse.load(TELEMETRY, telemetry(bodies(1)), producer="p", epoch=0)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'test' AND application_name = 'headrace'"
        )
    with pytest.raises(Unavailable):
        warehouse.load(TELEMETRY, telemetry(bodies(1), first=1), producer="p", epoch=1)
    assert warehouse.load(TELEMETRY, telemetry(bodies(1), first=1), producer="p", epoch=1).new == 1


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        PostgresWarehouse("postgresql://h@127.0.0.1:1/x", SystemClock()).prepare()


def test_a_url_that_is_none_is_refused_without_repeating_its_password() -> None:
    with pytest.raises(UserError) as caught:
        PostgresWarehouse("postgresql://u:hunter2@h:port:x/?nope=1", SystemClock())
    assert "hunter2" not in str(caught.value)


def test_a_wrong_password_is_the_users_to_fix(url: str) -> None:
    head, _, tail = url.partition("@")
    wrong = head.rpartition(":")[0] + ":wrong@" + tail
    with pytest.raises(UserError, match="refused"):
        PostgresWarehouse(wrong, SystemClock()).prepare()


def test_a_database_that_does_not_exist_is_the_users_to_fix(url: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        PostgresWarehouse(url + "_nope", SystemClock()).prepare()
