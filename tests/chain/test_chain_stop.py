"""Last of all, as it spoils the project: the books notice a lost row, and `headrace down` leaves nothing behind."""

from __future__ import annotations

import json

import psutil
import psycopg
from chain_parts import Chain
from deltalake import DeltaTable


def test_one_row_lost_from_a_sink_unbalances_the_books_and_its_stage_is_named(chain: Chain) -> None:
    before = chain.headrace("ledger", "--json", "--wait", "60")
    assert before.returncode == 0, [stage for stage in json.loads(before.stdout)["stages"] if stage["gap"]]
    lost, other = sorted(chain.acknowledged)[:2]
    DeltaTable(chain.folder / ".headrace" / "lake" / "raw" / "telemetry").delete(f"_event_id = '{lost}'")
    with psycopg.connect(chain.address("supervisor", "warehouse")) as connection:
        assert connection.execute("DELETE FROM machine_telemetry WHERE event_id = %s", [other]).rowcount == 1
    after = chain.headrace("ledger", "--json")
    books = json.loads(after.stdout)
    assert after.returncode == 1
    assert books["balanced"] is False
    gaps = [(stage["stage"], stage["stream"], stage["gap"]) for stage in books["stages"] if stage["gap"]]
    assert sorted(gaps) == [
        ("function:entities:machine_telemetry", "telemetry", 1),
        ("function:lake", "telemetry", 1),
    ]


def test_down_leaves_no_process(chain: Chain) -> None:
    family = chain.family()
    assert len(family) >= 8
    done = chain.headrace("down")
    assert done.returncode == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert chain.headrace("status", "--json").returncode == 1
