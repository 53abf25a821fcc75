"""What people and programs are told while it runs."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from chain_parts import FEED_S, PERIOD_S, Chain, eventually, get


def test_status_names_every_part_and_is_unhealthy_for_the_one_broken_job(chain: Chain) -> None:
    done = chain.headrace("status", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["healthy"] is False
    parts = {part["part"]: part["state"] for part in told["parts"]}
    assert {"supervisor", "gateway", "jobs", "alerts", "function:lake", "function:entities", "web"} <= parts.keys()
    assert set(parts.values()) == {"ready"}
    work = {(one["part"], one["name"]): one for one in told["work"]}
    assert work["job", "machines"]["state"] == "running"


def test_the_console_answers_and_shows_history(chain: Chain) -> None:
    console = chain.address("web", "console")
    health = json.loads(get(f"{console}/health"))
    assert health["healthy"] is True
    assert not health["problems"]
    asked = {"stream": "telemetry", "entity": "fac1-cnc-001", "fields": "temperature,humidity", "since": "-1h"}
    points = json.loads(get(f"{console}/api/history?{urlencode(asked)}"))
    assert len(points["t"]) == FEED_S / PERIOD_S
    assert points["t"] == sorted(set(points["t"]))
    assert set(points["fields"]) == {"temperature", "humidity"}
    assert points["resume"]
    assert "<html" in get(console)


def test_every_part_counts_what_it_did(chain: Chain) -> None:
    assert chain.metric("gateway", "gateway_events_total") >= len(chain.acknowledged)
    opened = eventually(lambda: chain.metric("alerts", "alert_incidents_total", rule="maintenance", step="opened"))
    assert opened >= 1
