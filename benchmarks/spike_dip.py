"""How many events a second does the spike detector score, with 10,000 keys and a history of 120?

Prints one JSON line a batch size: events per CPU-second (one thread), and per wall second, medians over rounds; the answer
of a sample of keys is checked against a plain reading of the formula first.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import time

import numpy as np

from headrace.core.clock import TICKS_PER_S
from headrace.detect.spike_dip import SpikeDip

KEYS, HISTORY, SECONDS_WARM = 10_000, 120, 125


def ticks(rng, second, rows):
    """Every key once, in random order, at `second` and some jitter."""
    return rng.permutation(KEYS)[:rows], second * TICKS_PER_S + np.sort(rng.integers(0, TICKS_PER_S // 20, rows))


def plain(past, value):
    width = max(np.std(past), 1e-6 / math.sqrt(2))
    p = 0.5 - sum(math.erf((value - v) / (width * math.sqrt(2))) for v in past) / (2 * len(past))
    return min(max(min(p, 1 - p), 1e-8), 1 - 1e-8)


def main() -> None:
    rng = np.random.default_rng(7)
    detector = SpikeDip(HISTORY, 99.0, "spikesanddips", HISTORY * TICKS_PER_S)
    seen = [[] for _ in range(50)]
    second = 0
    for second in range(SECONDS_WARM):
        keys, times = ticks(rng, second, KEYS)
        values = rng.normal(20, 3, KEYS)
        _, scores = detector.score(keys, times, values)
        for row in np.flatnonzero(keys < 50):
            seen[keys[row]].append((int(times[row]), float(values[row]), float(scores[row])))
    for events in seen:
        time_now, value, score = events[-1]
        past = [v for t, v, _ in events[:-1] if time_now - t < HISTORY * TICKS_PER_S][-HISTORY:]
        assert abs(plain(past, value) - score) < 1e-9, (plain(past, value), score)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for batch in (500, 5_000, 10_000):
        wall, cpu = [], []
        for _ in range(12):
            second += 1
            keys, times = ticks(rng, second, KEYS)
            values = rng.normal(20, 3, KEYS)
            began, began_cpu = time.perf_counter(), time.process_time()
            for start in range(0, KEYS, batch):
                detector.score(keys[start : start + batch], times[start : start + batch], values[start : start + batch])
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
        print(
            json.dumps(
                {
                    "value": round(KEYS / statistics.median(cpu)),
                    "unit": "events per CPU second",
                    "wall_events_per_s": round(KEYS / statistics.median(wall)),
                    "batch": batch,
                    "keys": KEYS,
                    "history": HISTORY,
                    "rounds": len(wall),
                    "p50_us_per_event": round(statistics.median(wall) / KEYS * 1e6, 2),
                    "p99_us_per_event": round(max(wall) / KEYS * 1e6, 2),
                    "load": os.getloadavg()[0],
                    "commit": commit,
                    "machine": f"{platform.processor() or platform.machine()} x{os.cpu_count()}",
                }
            )
        )


if __name__ == "__main__":
    main()
