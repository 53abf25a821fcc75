"""W1 on Flink SQL, one local mini cluster: a JSON file in, JSON files out. Prints one JSON line."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()


def main(path: str, parallelism: str) -> None:
    from pyflink.table import EnvironmentSettings, TableEnvironment

    table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    table.get_config().set("parallelism.default", parallelism)
    table.get_config().set("table.local-time-zone", "UTC")
    with tempfile.TemporaryDirectory() as scratch:
        table.execute_sql(
            f"""CREATE TABLE events (machine_id STRING, ts TIMESTAMP_LTZ(3), temperature DOUBLE, vibration DOUBLE,
            pressure DOUBLE, WATERMARK FOR ts AS ts - INTERVAL '2' SECOND) WITH ('connector' = 'filesystem',
            'path' = '{path}', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601')"""
        )
        table.execute_sql(
            f"""CREATE TABLE windows (machine_id STRING, w TIMESTAMP_LTZ(3), c BIGINT, t DOUBLE, v DOUBLE, p DOUBLE)
            WITH ('connector' = 'filesystem', 'path' = '{scratch}/out', 'format' = 'json')"""
        )
        began = time.perf_counter()
        table.execute_sql(
            """INSERT INTO windows SELECT machine_id, window_end, count(*), avg(temperature), max(vibration),
            stddev_samp(pressure) FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND))
            GROUP BY machine_id, window_start, window_end HAVING count(*) >= 3 AND avg(temperature) > 65"""
        ).wait()
        seconds = time.perf_counter() - began
        averages = [
            json.loads(line)["t"]
            for file in Path(scratch, "out").rglob("*")
            if file.is_file()
            for line in file.read_text().splitlines()
        ]
    with_start_s = time.perf_counter() - STARTED
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "rows": len(averages),
                "total": sum(averages),
                "seconds": seconds,
                "with_start_s": with_start_s,
                "own_cpu_s": used.ru_utime + used.ru_stime,
            }
        )
    )


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), sys.argv[2] if len(sys.argv) > 2 else "2")
