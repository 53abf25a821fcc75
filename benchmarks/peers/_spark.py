"""W1 on Spark Structured Streaming, local[2]: FILE is a folder of newline-JSON files, one micro-batch each.

Prints one JSON line: result rows, their sum of averages, seconds with and without start-up, and the rate of the warm batches.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()


def main(folder: str, state_store: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    rocks = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
    builder = (
        SparkSession.builder.master("local[2]")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.memory", "2g")
    )
    if state_store == "rocksdb":
        builder = builder.config("spark.sql.streaming.stateStore.providerClass", rocks)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    began = time.perf_counter()
    schema = "machine_id STRING, ts TIMESTAMP, temperature DOUBLE, vibration DOUBLE, pressure DOUBLE"
    events = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1).json(folder)
    windows = (
        events.withWatermark("ts", "2 seconds")
        .groupBy(f.window("ts", "10 seconds"), "machine_id")
        .agg(
            f.count("*").alias("c"),
            f.avg("temperature").alias("t"),
            f.max("vibration").alias("v"),
            f.stddev("pressure").alias("p"),
        )
        .where("c >= 3 AND t > 65")
    )
    with tempfile.TemporaryDirectory() as scratch:
        target = f"{scratch}/out"
        query = (
            windows.writeStream.outputMode("append")
            .format("parquet")
            .option("path", target)
            .option("checkpointLocation", f"{scratch}/checkpoint")
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
        seconds = time.perf_counter() - began
        progress = [p for p in query.recentProgress if p["numInputRows"]]
        warm = progress[len(progress) // 2 :]
        rows, total, last = spark.read.parquet(target).agg(f.count("*"), f.sum("t"), f.max("window.end")).first()
    spark.stop()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "rows": rows,
                "total": total,
                "last_window": str(last),
                "seconds": seconds,
                "with_start_s": time.perf_counter() - STARTED,
                "warm_events_per_s": sum(p["numInputRows"] for p in warm)
                / (sum(p["durationMs"]["triggerExecution"] for p in warm) / 1000),
                "cpu_s": children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime,
                "rss_mb": max(children.ru_maxrss, own.ru_maxrss) // 1024,
            }
        )
    )


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), sys.argv[2] if len(sys.argv) > 2 else "rocksdb")
