"""Workload W1 (a 10 s tumbling count, average, maximum and deviation for each of 10,000 machines) on us, on a plain DuckDB batch
query and on the streaming engines that Python people use, all over the same file, one after the other in the same minutes.

Each peer lives in a virtual environment of its own, made on first use from benchmarks/peers/NAME.txt; one that cannot be had is
named with the reason. Windows of the peers begin at their start where ours end at their end, so each answer is compared with a
batch query of its own kind. A Markdown table comes last, on standard error.

    python benchmarks/sql_peers.py --rows 1000000 --peers spark,bytewax,flink
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from sql_w1 import write_events

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TIMEOUT_S = 600
PARTS = 10
STARTING_AT = """SELECT count(*) FROM (
  SELECT machine_id, epoch_us(ts::TIMESTAMP) // 10000000 AS w, count(*) AS c, avg(temperature) AS t
  FROM read_json('{path}', format = 'newline_delimited') GROUP BY ALL HAVING c >= 3 AND t > 65)"""


def environment(name: str) -> Path:
    """The interpreter of a peer's environment. Raises CalledProcessError with pip's words."""
    folder = ROOT / f".venv-peer-{name}"
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        uv = str(ROOT / ".venv" / "bin" / "uv")
        if not python.exists():
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        wanted = str(HERE / "peers" / f"{name}.txt")
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "-r", wanted]
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        ready.touch()
    return python


def measured(command: list[str], **environ: str) -> dict[str, Any]:
    """The JSON line a run prints, with the processor time and peak memory of all its processes."""
    began, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environ
    )
    try:
        printed, said = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed, said)
    after = os.times()
    report: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    report["whole_s"] = time.perf_counter() - began
    report["cpu_s"] = after.children_user + after.children_system - before.children_user - before.children_system
    return report


def runs(names: list[str], path: Path, parts: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    own = [sys.executable, str(HERE / "peers" / "_headrace.py"), str(path)]
    for engine in ("headrace", "duckdb"):
        for threads in ("1", "2"):
            yield f"{engine}, {threads} thread(s)", measured([*own, engine, threads])
    for name in names:
        try:
            python = str(environment(name))
            given = str(parts if name == "spark" else path)
            yield name, measured([python, str(HERE / "peers" / f"_{name}.py"), given], PYSPARK_PYTHON=python)
        except subprocess.CalledProcessError as exc:
            yield name, f"not run: {(exc.stderr or str(exc)).strip().splitlines()[-1][:200]}"
        except (subprocess.TimeoutExpired, OSError) as exc:
            yield name, f"not run: {exc}"[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peers", default="spark,bytewax,flink")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path, parts = Path(scratch, "events.json"), Path(scratch, "parts")
        write_events(path, given.rows)
        parts.mkdir()
        lines = path.read_bytes().splitlines(keepends=True)
        size = -(-len(lines) // PARTS)
        for number in range(PARTS):
            (parts / f"{number:02d}.json").write_bytes(b"".join(lines[number * size : (number + 1) * size]))
        ((rows,),) = duckdb.sql(STARTING_AT.format(path=path)).fetchall()
        found = dict(runs([name for name in given.peers.split(",") if name], path, parts))
    mine = found["headrace, 1 thread(s)"]
    assert isinstance(mine, dict)
    assert mine["rows"] == found["duckdb, 1 thread(s)"]["rows"], found  # type: ignore[index]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    common = {"rows": given.rows, "load": round(os.getloadavg()[0], 1), "commit": commit.strip()}
    common["machine"] = f"{platform.machine()} x{os.cpu_count()}"
    table = [
        "| engine | events/s | with start-up | events per CPU s | answer | ours (1 thread) is |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in found.items():
        if isinstance(report, str):
            table.append(f"| {name} | {report} | | | | |")
            continue
        best = max(given.rows / report["seconds"], report.get("warm_events_per_s", 0.0))
        peer = name.split(",")[0] not in ("headrace", "duckdb")
        answer = "right" if not peer else f"{report['rows']:,} of {rows:,} windows"
        ratio = given.rows / mine["seconds"] / best
        line = {
            "benchmark": "sql_peers." + name,
            "value": round(best),
            "unit": "events/s, without start-up",
            "ours_is": round(ratio, 2),
            "with_start": round(given.rows / report["whole_s"]),
            "cpu_s": round(report["cpu_s"], 2),
            "windows": report["rows"],
            "windows_right": rows if peer else mine["rows"],
        }
        print(json.dumps(line | common), flush=True)
        cells = (name, f"{best:,.0f}", f"{given.rows / report['whole_s']:,.0f}", f"{given.rows / report['cpu_s']:,.0f}")
        table.append(f"| {' | '.join(cells)} | {answer} | {ratio:.1f}x |")
    print("\n".join(table), file=sys.stderr)


if __name__ == "__main__":
    main()
