"""A project for files nobody has described: what `headrace demo --data FILE` makes.

It reads the first rows as they will arrive as messages, finds the numeric fields and how often a device reports, and writes
a job sized by that: averages over a few readings, single readings that stand out, averages that leave their usual range.
Rows that tell their time are judged by it, so the figures do not depend on how fast the files are replayed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.blueprints.explore_profile import Profile, profile, quoted
from headrace.connectors.files import FileRows
from headrace.core.errors import DataError

FIELDS_MAX = 12
READINGS_A_WINDOW = 8
WINDOWS_A_DEVICE = 40  # a short recording gets shorter windows, down to READINGS_MIN, so that it has about so many
READINGS_MIN = 4
SPIKE_HISTORY = 120  # readings
SHIFT_HISTORY = 20  # windows
SIZES_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
DURATION_S_MAX = 7 * 86_400


def project_files(files: Sequence[FileRows], *, name: str, play_s: float) -> dict[str, str]:
    """headrace.toml and a job for the messages of `files`. `play_s` is how long they will take to replay.

    Raises DataError where no field is a number that moves.
    """
    found = profile(files, fields_max=FIELDS_MAX)
    if not found.fields:
        raise DataError(
            f"{name} has no numeric field that changes",
            hint="replay it into a project of your own with `headrace replay`",
            code="explore.no_numbers",
        )
    window_s = window_of(found, play_s=play_s)
    return {"headrace.toml": _toml(name, found, window_s, play_s), "sql/explore.asaql": script(found, window_s)}


def window_of(found: Profile, *, play_s: float) -> int:
    """Seconds that hold about READINGS_A_WINDOW readings of a device, fewer where it has few; from SIZES_S."""
    each = found.rows / found.devices
    spacing_s = found.spacing_s if found.time_sql else play_s / each
    wanted = spacing_s * min(READINGS_A_WINDOW, max(READINGS_MIN, each / WINDOWS_A_DEVICE))
    return next((size for size in SIZES_S if size >= 0.8 * wanted), SIZES_S[-1])


def script(found: Profile, window_s: int) -> str:
    """The stream SQL of the project."""
    source = f"telemetry TIMESTAMP BY {found.time_sql}" if found.time_sql else "telemetry"
    time = "event time, taken from the rows" if found.time_sql else "arrival time: the rows tell none"
    device = "IoTHub.ConnectionDeviceId"
    averages = ",\n".join(f"        AVG({quoted(path)}) AS {_named(path)}" for path in found.fields)
    columns = ", ".join(_named(path) for path in found.fields)
    spikes = "\n    UNION\n".join(
        f"    SELECT {device} AS deviceId, 'spike' AS kind, {_text(path)} AS field, {quoted(path)} AS value,\n"
        f"        AnomalyDetection_SpikeAndDip({quoted(path)}, 99.95, {SPIKE_HISTORY}, 'spikesanddips')\n"
        f"            OVER (PARTITION BY {device} LIMIT DURATION(second, {_duration(window_s, SPIKE_HISTORY)})) AS result\n"
        f"    FROM {source}"
        for path in found.fields
    )
    shifts = "\n    UNION\n".join(
        f"    SELECT deviceId, 'shift' AS kind, {_text(path)} AS field, {_named(path)} AS value,\n"
        f"        AnomalyDetection_SpikeAndDip({_named(path)}, 99.5, {SHIFT_HISTORY}, 'spikesanddips')\n"
        f"            OVER (PARTITION BY deviceId LIMIT DURATION(second, {_duration(window_s, 2 * SHIFT_HISTORY)})) AS result\n"
        f"    FROM windows"
        for path in found.fields
    )
    return f"""-- Written by `headrace demo` from the first rows of the file: change it as you like.
-- Time is {time}. A window of {window_s:,} s holds a few readings of a device.
WITH windows AS (
    SELECT
        {device} AS deviceId,
        System.Timestamp() AS windowEnd,
        COUNT(*) AS events,
{averages}
    FROM {source}
    GROUP BY {device}, TumblingWindow(second, {window_s})
),
-- Single readings far from the device's last {SPIKE_HISTORY}.
spikes AS (
{spikes}
),
-- Averages far from the device's last {SHIFT_HISTORY}: slower changes, which no single reading shows.
shifts AS (
{shifts}
)

SELECT deviceId, windowEnd, events, {columns}
INTO aggregates
FROM windows

SELECT deviceId, kind, field, value, result.Score AS score, System.Timestamp() AS time
INTO anomalies
FROM spikes
WHERE result.IsAnomaly = 1
UNION
SELECT deviceId, kind, field, value, result.Score AS score, System.Timestamp() AS time
FROM shifts
WHERE result.IsAnomaly = 1
"""


def _duration(window_s: int, windows: int) -> int:
    """Seconds for so many readings (or windows) and the gaps between them."""
    return min(DURATION_S_MAX, window_s * windows)


def _named(path: tuple[str, ...]) -> str:
    return quoted((".".join(path),))


def _text(path: tuple[str, ...]) -> str:
    return "'" + ".".join(path).replace("'", "''") + "'"


def _toml(name: str, found: Profile, window_s: int, play_s: float) -> str:
    plain = re.sub(r"[^a-z0-9-]+", "-", name.split(".")[0].lower()).strip("-") or "replay"
    shown = name.replace("\\", "\\\\").replace('"', '\\"')
    event_time = ""
    if found.time_sql:
        event_time = f"""late_arrival_s = -1.0   # a recording is late by years: its own time counts, not when it arrives
out_of_order_s = {window_s / 2:.1f}
"""
    return f"""# Made by `headrace demo` to replay {shown}.

[project]
name = "{plain}"
title = "Replay of {shown}"

[gateway]
mqtt_port = 0           # any free port; `headrace status` prints it
https_port = 0

[web]
port = 0

[jobs.explore]
query = "sql/explore.asaql"
{event_time}
[alerts.shift]          # the average of a field left its usual range
stream = "anomalies"
when = "kind = 'shift' AND score < 0.001"
severity = "warning"
title = "{{deviceId}}: {{field}} moved to {{value}}"
clear_s = {max(5.0, play_s / 6):.0f}.0

[alerts.spike]          # one reading stood out by far
stream = "anomalies"
when = "kind = 'spike' AND score < 0.00001"
severity = "info"
title = "{{deviceId}}: {{field}} jumped to {{value}}"
clear_s = {max(5.0, play_s / 6):.0f}.0

[entities.machine_telemetry]
stream = "telemetry"
"""
