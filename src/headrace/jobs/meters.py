"""The figures of jobs as Prometheus metrics, made from what jobs write about themselves.

Jobs run in a process without a door, so whoever has one exposes their figures. Totals are gauges here: a job that starts anew
counts from zero, which `rate` and `increase` understand as they do for counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.core.observe.metrics import Metrics

_JOB = {
    "lag": ("job_lag_events", "Events in the log that the job has not read"),
    "watermark_delay_s": ("job_watermark_delay_seconds", "How far the results are behind the clock"),
    "rows_in": ("job_rows_in", "Rows read since the process started"),
    "rows_out": ("job_rows_out", "Rows written since the process started"),
    "set_aside": ("job_rows_set_aside", "Rows set aside since the process started"),
    "state_rows": ("job_state_rows", "Rows that operators hold"),
    "state_bytes": ("job_state_bytes", "Bytes of state in the last checkpoint"),
    "busy_s": ("job_busy_seconds", "Seconds in operators since the process started"),
}
_OPERATOR = {
    "rows_in": ("job_operator_rows_in", "Rows that reached the operator"),
    "rows_out": ("job_operator_rows_out", "Rows that it gave"),
    "state_rows": ("job_operator_state_rows", "Rows that it holds"),
    "state_bytes": ("job_operator_state_bytes", "Bytes of its state in the last checkpoint"),
    "watermark_delay_s": ("job_operator_watermark_delay_seconds", "How far it is behind the latest arrival"),
    "busy_s": ("job_operator_busy_seconds", "Seconds in it since the process started"),
}
_LABELS = ("job", "operator", "statement")


def tell(metrics: Metrics, jobs: Iterable[Mapping[str, Any]], details: Iterable[Mapping[str, Any]]) -> None:
    """Set the gauges of jobs from their status documents and of operators from their details."""
    for job in jobs:
        name = str(job["name"])
        up = metrics.gauge("job_running", "1 while the job runs, 0 while it waits, failed or stopped", ("job",))
        up.labels(name).set(job.get("state") == "running")
        for field, (metric, about) in _JOB.items():
            if (value := job.get(field)) is not None:
                metrics.gauge(metric, about, ("job",)).labels(name).set(value)
        decoders = metrics.gauge("job_decoder", "1 for the decoder that an input has", ("job", "input", "kind"))
        for input, kind in job.get("decoders", {}).items():
            decoders.labels(name, input, kind).set(1)
    for one in details:
        for operator in one.get("operators", ()):
            labels = str(one["name"]), operator["operator"], operator["output"] or ""
            for field, (metric, about) in _OPERATOR.items():
                if (value := operator.get(field)) is not None:
                    metrics.gauge(metric, about, _LABELS).labels(*labels).set(value)
