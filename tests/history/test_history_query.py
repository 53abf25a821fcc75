"""Lake and recent log as one."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from history_plant import Plant

from headrace.core.clock import SystemClock
from headrace.core.errors import NotFound, Unavailable, UserError
from headrace.history.query import HistoryQuery


async def ask(plant: Plant, sql: str, **options: Any) -> list[tuple[Any, ...]]:
    table = await asyncio.to_thread(plant.history.run, sql, **options)
    return [tuple(row.values()) for row in table.to_pylist()]


async def refused(plant: Plant, sql: str) -> UserError:
    with pytest.raises(UserError) as caught:
        await asyncio.to_thread(plant.history.run, sql)
    return caught.value


async def test_rows_of_lake_and_log_are_one_table_without_gap_or_double(plant: Plant) -> None:
    await plant.send(*({"t": number} for number in range(5)))
    await plant.project()
    await plant.send(*({"t": number} for number in range(5, 8)))
    assert await ask(plant, "SELECT _event_id, t FROM telemetry ORDER BY t") == [(f"e{n}", float(n)) for n in range(8)]
    assert await ask(plant, "SELECT count(*) FROM raw.telemetry") == [(5,)]


async def test_a_lake_whose_folder_looks_like_a_pattern_is_read_all_the_same(tmp_path: Path) -> None:
    plant = Plant(tmp_path / "what? *")
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": 2})
    assert await ask(plant, "SELECT t FROM telemetry ORDER BY t") == [(1.0,), (2.0,)]


async def test_a_stream_that_is_not_in_the_lake_yet_is_read_from_the_log(plant: Plant) -> None:
    await plant.send({"t": 1}, stream="scored")
    assert await ask(plant, "SELECT t FROM scored") == [(1.0,)]


async def test_a_table_whose_stream_is_gone_is_read_from_the_lake(plant: Plant) -> None:
    await plant.send({"t": 1}, stream="scored")
    await plant.project("scored")
    rows = plant.lake.scan("served.scored").drop_columns(["_date"])
    plant.lake.append("served.old", rows, producer="lake:old", epoch=0)
    assert await ask(plant, "SELECT t FROM old") == [(1.0,)]
    assert await ask(plant, "SELECT t FROM served.old JOIN served.scored USING (t)") == [(1.0,)]


async def test_a_new_field_shows_in_recent_rows_before_the_lake_knows_it(plant: Plant) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": 2, "new.field": "x", "deep": {"er": True}})
    assert await ask(plant, 'SELECT t, "new.field", "deep.er" FROM telemetry ORDER BY t') == [
        (1, None, None),
        (2, "x", True),
    ]
    await plant.project()
    assert await ask(plant, 'SELECT t, "new.field" FROM raw.telemetry ORDER BY t') == [(1, None), (2, "x")]


async def test_a_recent_value_that_does_not_fit_the_lakes_column_is_rescued(plant: Plant) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": "hot"}, b"no json")
    found = await ask(plant, "SELECT t, _rescued, _error IS NOT NULL, _body FROM telemetry ORDER BY _enqueued")
    assert found == [
        (1.0, None, False, '{"t": 1}'),
        (None, '{"t": "hot"}', False, '{"t": "hot"}'),
        (None, None, True, "no json"),
    ]


async def test_columns_are_system_then_payload_then_body(plant: Plant) -> None:
    await plant.send({"b": 1, "a": 2})
    await plant.project()
    await plant.send({"c": 3})
    table = await asyncio.to_thread(plant.history.run, "SELECT * FROM telemetry")
    names = table.column_names
    assert names[:2] == ["_time", "_event_id"]
    assert [name for name in names if not name.startswith("_")] == ["b", "a", "c"]
    assert names[-2:] == ["_body", "_body_encoding"]
    assert not {"_date", "_stream"} & set(names)


async def test_times_are_utc(plant: Plant) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": 2})
    (first, second) = await ask(plant, "SELECT strftime(_time, '%Y-%m-%dT%H:%M:%S') FROM telemetry ORDER BY t")
    assert (first, second) == (("2025-01-01T00:00:00",), ("2025-01-01T00:00:01",))


async def test_compaction_between_two_questions_changes_nothing(plant: Plant) -> None:
    for number in range(6):
        await plant.send({"t": number, f"only{number}": 1})
        await plant.project()
    before = await ask(plant, "SELECT * FROM telemetry ORDER BY t")
    plant.lake.compact("raw.telemetry")
    assert await ask(plant, "SELECT * FROM telemetry ORDER BY t") == before


async def test_questions_during_writing_and_projecting_see_every_event_once(plant: Plant) -> None:
    history, answers, stop = plant.history, [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(
                history.run("SELECT count(*), count(DISTINCT _event_id), max(t) FROM telemetry").to_pylist()[0]
            )

    await plant.send({"t": 0})
    asking = asyncio.create_task(asyncio.to_thread(keep_asking))
    for number in range(1, 60):
        await plant.send({"t": number})
        await asyncio.sleep(0)
        if number % 7 == 0:
            await asyncio.to_thread(lambda: None)
            await plant.project()
        if number % 20 == 0:
            await asyncio.to_thread(plant.lake.compact, "raw.telemetry")
    stop.set()
    await asking
    assert len(answers) >= 3
    for answer in answers:
        rows, ids, last = answer.values()
        assert rows == ids == last + 1


async def test_tables_are_listed(plant: Plant) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": 1}, stream="scored")
    assert await ask(plant, "show tables;") == [("scored",), ("telemetry",), ("raw.telemetry",)]
    assert await asyncio.to_thread(plant.history.tables) == ["scored", "telemetry", "raw.telemetry"]


async def test_describe_and_summarize_work(plant: Plant) -> None:
    await plant.send({"t": 1}, {"t": 3})
    await plant.project()
    described = {row[0]: row[1] for row in await ask(plant, "DESCRIBE telemetry")}
    assert (described["t"], described["_time"]) == ("DOUBLE", "TIMESTAMP WITH TIME ZONE")
    (summary,) = [row for row in await ask(plant, "SUMMARIZE telemetry") if row[0] == "t"]
    assert summary[2:4] == ("1.0", "3.0")


async def test_a_limit_bounds_the_answer(plant: Plant) -> None:
    await plant.send(*({"t": number} for number in range(9)))
    assert len(await ask(plant, "SELECT t FROM telemetry ORDER BY t", limit=4)) == 4


async def test_an_empty_stream_has_columns_and_no_rows(plant: Plant) -> None:
    await plant.log.bounds("silent")
    assert await ask(plant, "SELECT _time, _device, _body FROM silent") == []


async def test_an_unknown_table_is_named_with_its_place_and_the_nearest(plant: Plant) -> None:
    await plant.send({"t": 1})
    problem = await refused(plant, "SELECT *\nFROM telemetri")
    assert problem.message == "there is no table 'telemetri' at line 2, column 6"
    assert (problem.hint, problem.code) == ("did you mean 'telemetry'?", "query.no_table")
    assert "telemetry" in (await refused(plant, "SELECT * FROM xyzzy")).hint
    assert "telemetry" in (await refused(plant, "SELECT * FROM cooked.telemetry")).hint


@pytest.mark.parametrize(
    ("sql", "place", "code"),
    [
        ("SELEC 1", "line 1, column 1", "query.syntax"),
        ("SELECT t\n  FROM telemetry WHERE", "line 2", "query.syntax"),
        ("SELECT t,\n  nope FROM telemetry", "line 2, column 3", "query.name"),
        ("SELECT t, data.temp FROM telemetry", "line 1, column 11", "query.name"),
        ("SELECT nope(t) FROM telemetry", "line 1, column 8", "query.name"),
        ("SELECT t, CAST(_device AS INT) FROM telemetry", "line 1, column 11", "query.failed"),
        (f"SELECT {'t, ' * 100} nope FROM telemetry", "line 1, column 309", "query.name"),
    ],
)
async def test_a_wrong_query_says_where(plant: Plant, sql: str, place: str, code: str) -> None:
    await plant.send({"t": 1})
    problem = await refused(plant, sql)
    assert place in problem.message, problem.message
    assert problem.code == code


async def test_a_dotted_field_is_hinted_at(plant: Plant) -> None:
    await plant.send({"data": {"temp": 1}})
    assert '"data.temp"' in (await refused(plant, "SELECT data.temp FROM telemetry")).hint


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE telemetry",
        "CREATE TABLE x AS SELECT 1",
        "COPY telemetry TO '/tmp/x.csv'",
        "SET threads = 1",
        "ATTACH '/tmp/x.db'",
        "PRAGMA database_list",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM plant",
    ],
)
async def test_a_query_only_reads_tables(plant: Plant, sql: str) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await refused(plant, f"{sql} -- telemetry" if "FROM" in sql else sql)


async def test_a_query_that_takes_too_long_is_interrupted(plant: Plant) -> None:
    history = HistoryQuery(plant.lake, plant.log, SystemClock(), timeout_s=0.2)
    with pytest.raises(Unavailable, match=r"more than 0\.2 s"):
        await asyncio.to_thread(
            history.run, "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range = -1"
        )


async def test_a_lake_far_behind_the_log_is_said_rather_than_read(plant: Plant) -> None:
    await plant.send(*({"t": number} for number in range(9)))
    history = HistoryQuery(plant.lake, plant.log, SystemClock(), recent_rows_max=5)
    with pytest.raises(Unavailable, match="9 events of 'telemetry' behind"):
        await asyncio.to_thread(history.run, "SELECT * FROM telemetry")


async def test_what_retention_took_before_the_lake_had_it_is_no_obstacle(plant: Plant) -> None:
    await plant.send({"t": 1})
    await plant.project()
    await plant.send({"t": 2}, {"t": 3})
    await plant.log.trim("telemetry", plant.at(1.5))
    assert await ask(plant, "SELECT t FROM telemetry ORDER BY t") == [(1.0,), (3.0,)]


async def test_a_history_made_where_no_loop_runs_still_answers(plant: Plant) -> None:
    await plant.send({"t": 1})
    made = await asyncio.to_thread(lambda: plant.history)
    assert (await asyncio.to_thread(made.run, "SELECT t FROM telemetry")).num_rows == 1


async def span(plant: Plant, since: float, until: float, **options: Any) -> tuple[pa.Table, tuple[int, ...]]:
    return await asyncio.to_thread(plant.history.range, "telemetry", plant.at(since), plant.at(until), **options)


async def test_a_range_is_one_entitys_rows_over_lake_and_log_oldest_first(plant: Plant) -> None:
    await plant.send(*({"t": number, "u": -number, "s": "x"} for number in range(6)))
    await plant.project()
    await plant.send(*({"t": number} for number in range(6, 12)))
    table, _ = await span(plant, 1, 10, entity="pump-1", fields=["t", "nothing"])
    assert table["t"].to_pylist() == [1.0, 4.0, 7.0, 10.0]
    assert set(table["_entity_id"].to_pylist()) == {"pump-1"}
    assert "u" not in table.column_names
    everything, _ = await span(plant, 0, 100)
    assert {"t", "u", "s"} <= set(everything.column_names)
    assert everything.num_rows == 12


@pytest.mark.parametrize("until", [3.5, 6.0, 8.0, 11.0, 1000.0])
async def test_live_goes_on_from_a_ranges_positions_without_gap_or_double(plant: Plant, until: float) -> None:
    await plant.send(*({"t": number} for number in range(6)))
    await plant.project()
    await plant.send(*({"t": number} for number in range(6, 12)))
    table, positions = await span(plant, 0, until)
    await plant.send(*({"t": number} for number in range(12, 15)))
    live = await plant.log.read_merged("telemetry", positions, rows_max=1000, wait_s=0)
    seen = table["_event_id"].to_pylist() + live.batch.column("_event_id").to_pylist()
    assert seen == [f"e{number}" for number in range(15)]


async def test_a_long_range_is_thinned_and_its_spikes_stay(plant: Plant) -> None:
    values = np.sin(np.arange(3000) / 50)
    values[1234], values[77] = 50.0, -50.0
    bodies = [json.dumps({"t": value, "n": None}).encode() for value in values.tolist()]
    await plant.send(*bodies, devices=["pump"] * 3000)
    table, _ = await span(plant, 0, 10_000, points_max=100)
    assert table.num_rows <= 100
    found = table["t"].to_pylist()
    assert {50.0, -50.0, values[0], values[-1]} <= set(found)
    assert table["_enqueued"].to_pylist() == sorted(table["_enqueued"].to_pylist())


async def test_a_range_of_an_unknown_stream_is_not_found(plant: Plant) -> None:
    await plant.send({"t": 1})
    with pytest.raises(NotFound) as caught:
        await asyncio.to_thread(plant.history.range, "telemetri", 0, 1)
    assert "telemetry" in caught.value.hint


async def test_a_range_with_too_many_rows_asks_for_a_shorter_one(plant: Plant) -> None:
    await plant.send(*({"t": number} for number in range(9)))
    history = HistoryQuery(plant.lake, plant.log, SystemClock(), rows_max=8)
    with pytest.raises(UserError, match="more than 8 rows"):
        await asyncio.to_thread(history.range, "telemetry", 0, plant.at(100))
