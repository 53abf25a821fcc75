"""A project for a file nobody has described: what `headrace demo --data FILE` makes.

It reads the first rows as they will arrive as messages, finds the numeric fields, and writes a job that averages each
over ten seconds and looks for spikes in each. People change the files from there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from headrace.connectors.files import FileRows
from headrace.core.errors import DataError

FIELDS_MAX = 8
PEEK_ROWS = 2000
LABELS = re.compile(r"^(anomaly|changepoint|label|target|failure|machinefailure)$", re.IGNORECASE)


def project_files(path: Path, *, device: str | None = None, time: str | None = None) -> dict[str, str]:
    """headrace.toml and a job for the messages of `path`. Raises DataError where no field is a number."""
    rows = FileRows(path, device_column=device, time_column=time)
    fields = numeric_fields(rows)
    if not fields:
        raise DataError(
            f"{path} has no numeric field", hint="replay it into a project of your own with `headrace replay`"
        )
    return {"headrace.toml": _toml(path), "sql/explore.asaql": script(fields)}


def numeric_fields(rows: FileRows) -> list[str]:
    """Paths of the fields that are numbers and move, at most FIELDS_MAX; labels and row counters are left out."""
    seen: dict[str, set[float]] = {}
    counts: Counter[str] = Counter()
    taken = 0
    for batch in rows.batches(rows_max=PEEK_ROWS):
        for body in batch.bodies:
            for name, value in _walk(json.loads(body), ""):
                counts[name] += 1
                seen.setdefault(name, set()).add(value)
        taken += len(batch.bodies)
        if taken >= PEEK_ROWS:
            break
    skip = {rows.device_column, rows.time_column}
    moving = [
        name for name in seen if len(seen[name]) > 3 and name not in skip and not LABELS.match(name.split(".")[-1])
    ]
    return sorted(moving, key=lambda name: -counts[name])[:FIELDS_MAX]


def script(fields: list[str]) -> str:
    """The stream SQL of the project: ten-second averages per device, and spikes per device and field."""
    paths = [".".join(f"[{part}]" for part in name.split(".")) for name in fields]
    names = [re.sub(r"\W+", "_", name.split(".")[-1]) for name in fields]
    device = "IoTHub.ConnectionDeviceId"
    averages = ",\n".join(f"    AVG({path}) AS {name}" for path, name in zip(paths, names, strict=True))
    looked_at = "\n    UNION\n".join(
        f"    SELECT {device} AS deviceId, '{name}' AS field, {path} AS value,\n"
        f"        AnomalyDetection_SpikeAndDip({path}, 99.9, 120, 'spikesanddips')\n"
        f"            OVER (PARTITION BY {device} LIMIT DURATION(minute, 60)) AS result\n"
        f"    FROM telemetry"
        for path, name in zip(paths, names, strict=True)
    )
    return f"""-- Written by `headrace demo` from the first rows of the file: change it as you like.
-- Ten seconds of arrival time: a file replayed faster than it was recorded is one long burst.
WITH looked_at AS (
{looked_at}
)
SELECT
    {device} AS deviceId,
    System.Timestamp() AS windowEnd,
    COUNT(*) AS events,
{averages}
INTO aggregates
FROM telemetry
GROUP BY {device}, TumblingWindow(second, 10)

SELECT deviceId, field, value, result.Score AS score, System.Timestamp() AS time
INTO anomalies
FROM looked_at
WHERE result.IsAnomaly = 1
"""


def _toml(path: Path) -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", path.name.split(".")[0].lower()).strip("-")
    return f"""# Made by `headrace demo` to replay {path.name}.

[project]
name = "{name}"
title = "Replay of {path.name}"

[gateway]
mqtt_port = 0           # any free port; `headrace status` prints it
https_port = 0

[web]
port = 0

[jobs.explore]
query = "sql/explore.asaql"

[alerts.spike]
stream = "anomalies"
when = "score < 0.001"
title = "{{deviceId}}: {{field}} jumped to {{value}}"
clear_s = 30.0

[entities.machine_telemetry]
stream = "telemetry"
"""


def _walk(value: Any, path: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for name, inner in value.items() for found in _walk(inner, f"{path}.{name}" if path else name)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [(path, float(value))]
    return []
