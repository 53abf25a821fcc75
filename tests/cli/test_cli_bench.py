"""`headrace bench ingest` as people run it: a hub of its own, and a report whose numbers agree with each other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.gateway.load import _EDGES, LoadResult, body_of, merged


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "bench", "ingest", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [["--rate", "400"], ["--rate", "max", "--tls"]])
def test_all_that_was_acknowledged_is_in_the_log(tmp_path: Path, arguments: list[str]) -> None:
    done = bench(tmp_path, "--connections", "4", "--for", "0.6", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["connected"] == 4
    assert report["acked"] == report["sent"] == report["stored"] > 100
    assert report["acknowledged_and_missing"] == report["lost_connections"] == 0
    assert 0 < report["puback_p50_ms"] <= report["puback_p99_ms"]
    assert report["tls"] == ("--tls" in arguments)


def test_without_acknowledgements_the_log_is_the_judge(tmp_path: Path) -> None:
    report = json.loads(
        bench(tmp_path, "--connections", "2", "--rate", "200", "--for", "0.6", "--qos", "0", "--json").stdout
    )
    assert (report["acked"], report["stored"]) == (0, report["sent"])


def test_a_rate_that_is_no_number_is_explained(tmp_path: Path) -> None:
    done = bench(tmp_path, "--rate", "quick")
    assert done.returncode == 1
    assert "--rate max" in done.stderr


def test_a_body_is_json_of_the_size_asked_for() -> None:
    body = body_of(150, 7)
    assert len(body) == 150
    assert json.loads(body)["machineId"] == "bench-00007"


def test_processes_are_merged_by_adding_counts_and_joining_their_waits() -> None:
    waits = np.zeros(len(_EDGES) + 1, int)
    waits[np.searchsorted(_EDGES, 0.01)] = 99
    slow = np.zeros(len(_EDGES) + 1, int)
    slow[np.searchsorted(_EDGES, 1.0)] = 1
    one = LoadResult(
        connected=1, sent=99, acked=99, acked_in_time=99, seconds=2, cpu_s=1, waits=waits.tolist(), max_s=0.01
    )
    two = LoadResult(connected=1, sent=1, acked=1, acked_in_time=1, seconds=2, cpu_s=1, waits=slow.tolist(), max_s=1.0)
    report = merged([one, two])
    assert (report["acked"], report["acked_per_s"], report["generator_cpu_share"]) == (100, 50, 0.5)
    assert 10 <= report["puback_p99_ms"] < 11
    assert report["puback_max_ms"] == 1000
