"""What the gateway acknowledged is in every store once, and people hear of what it means."""

from __future__ import annotations

import json
from collections import Counter

import psycopg
from chain_parts import FEED_S, MACHINES, PERIOD_S, Chain, eventually
from deltalake import DeltaTable

from headrace.core import runstate


def test_every_acknowledged_event_is_in_lake_and_warehouse_exactly_once(chain: Chain) -> None:
    assert len(chain.acknowledged) == MACHINES * int(FEED_S / PERIOD_S)
    done = chain.headrace("ledger", "--json", "--wait", "60")
    books = json.loads(done.stdout)
    assert done.returncode == 0, [stage for stage in books["stages"] if stage["gap"]]
    assert books["balanced"] is True
    assert books["pending"] == 0
    table = DeltaTable(chain.folder / ".headrace" / "lake" / "raw" / "telemetry").to_pyarrow_table(
        columns=["_event_id"]
    )
    lake = Counter(table["_event_id"].to_pylist())
    with psycopg.connect(chain.address("supervisor", "warehouse")) as connection:
        entities = Counter(row[0] for row in connection.execute("SELECT event_id FROM machine_telemetry"))
    for stored in (lake, entities):
        assert chain.acknowledged <= stored.keys()
        assert {stored[id] for id in chain.acknowledged} == {1}


def test_a_field_that_appeared_while_running_can_be_asked_for_without_a_restart(chain: Chain) -> None:
    asked = "SELECT count(*) AS all_rows, count(humidity) AS humid, min(humidity) AS low FROM telemetry"
    done = chain.headrace("query", asked, "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert 0.3 < row["humid"] / row["all_rows"] < 0.7
    assert row["low"] > 20
    assert chain.rows("SELECT count(humidity) AS humid FROM scored")[0]["humid"] > 0
    assert {state.part: state.pid for state in runstate.read_all(chain.project)} == chain.pids


def test_scores_windows_and_requirements_come_out_of_the_job(chain: Chain) -> None:
    (scored,) = chain.rows("SELECT count(*) AS n, count(rul) AS told, min(rul) AS low FROM scored")
    assert scored["n"] == scored["told"] == len(chain.acknowledged)
    assert scored["low"] < 90
    (windows,) = chain.rows("SELECT sum(events) AS events, count(DISTINCT machineId) AS machines FROM aggregates")
    assert windows["machines"] == MACHINES
    assert 0 < windows["events"] <= len(chain.acknowledged)
    assert {row["requirement"] for row in chain.rows("SELECT DISTINCT requirement FROM maintenance")} <= {
        "replace tool",
        "plan tool change",
    }


def test_a_machine_near_its_end_raises_an_alert_that_names_it(chain: Chain) -> None:
    alerts = eventually(lambda: json.loads(chain.headrace("alert", "list", "--json").stdout))
    critical = [alert for alert in alerts if alert["rule"] == "maintenance"]
    assert critical
    for alert in critical:
        assert alert["title"].startswith(alert["key"])
        assert alert["notified"]["log:open"] == "sent"
