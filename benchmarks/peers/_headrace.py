"""W1 on our engine, from the file, with 1 or 2 threads; or on a plain DuckDB batch query. Prints one JSON line."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sql_w1 import FIELDS, ours, peer, read_events  # noqa: E402

BATCH = 50_000


def main(path: Path, engine: str, threads: int) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    if engine == "headrace":
        answer = ours(read_events(path, BATCH), threads=threads)
    else:
        columns = FIELDS.replace('"', "'")
        answer = peer(f"read_json('{path}', format='newline_delimited', columns={columns})", None, threads)
    print(
        json.dumps(
            {
                "rows": answer.rows,
                "total": answer.averages,
                "seconds": time.perf_counter() - began,
                "with_start_s": time.perf_counter() - STARTED,
                "cpu_s": time.process_time() - cpu,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
