"""What a job is, and what it tells about itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.core.config import JobConfig
from headrace.core.errors import NotFound, nearest

STATUS = "runtime"
"""Documents that say how parts of the platform stand; those of jobs have the id `job:NAME`."""
DETAILS = "job_details"
"""Plan and operators of each job, by its name: for those who look at one job."""


class JobSpec(msgspec.Struct, frozen=True):
    """A job: its name, its script, its settings and the project folder that its files are in."""

    name: str
    text: str
    config: JobConfig
    folder: Path

    @property
    def stage(self) -> str:
        """Its name in the ledger."""
        return f"job:{self.name}"

    @property
    def fingerprint(self) -> str:
        """Changes when kept state no longer fits: with the script, and with which stream an input reads."""
        text = msgspec.json.encode([self.text, sorted(self.config.inputs.items())])
        return hashlib.blake2b(text, digest_size=12).hexdigest()

    @property
    def text_and_streams(self) -> dict[str, Any]:
        """What `as_before` needs to make this job again after its script or settings were changed."""
        return {"text": self.text, "inputs": self.config.inputs, "outputs": self.config.outputs}

    def as_before(self, kept: Mapping[str, Any]) -> JobSpec:
        """This job with the script and streams of `text_and_streams`."""
        config = msgspec.structs.replace(self.config, inputs=kept["inputs"], outputs=kept["outputs"])
        return msgspec.structs.replace(self, text=kept["text"], config=config)


class JobStatus(msgspec.Struct, kw_only=True):
    """How a job stands. `failed`: a person must act, `error` says why. `waiting`: it will be started again by itself."""

    name: str
    state: Literal["starting", "running", "waiting", "failed", "stopped"] = "starting"
    error: str = ""
    epoch: int = 0
    lag: int = 0  # rows in the log that it has not read
    watermark_delay_s: float | None = None  # how far its results are behind the clock; None before the first row
    rows_in: int = 0  # since the process started
    rows_out: int = 0
    set_aside: int = 0
    rows_per_s: float = 0.0  # rows in, over the time between the last two looks
    streams: list[str] = []  # that it reads
    outputs: list[str] = []  # streams that it writes
    decoders: dict[str, str] = {}  # by input: `compiled` or `plain`
    state_rows: int = 0  # that its operators hold
    state_bytes: int = 0  # as of the last checkpoint
    busy_s: float = 0.0  # of all operators, since the process started


def load_job(name: str, config: JobConfig, folder: Path) -> JobSpec:
    """The job NAME of a project. Raises NotFound when its script is not there."""
    path = folder / config.query
    try:
        return JobSpec(name, path.read_text(encoding="utf-8"), config, folder)
    except (OSError, UnicodeDecodeError) as exc:
        known = [str(found.relative_to(folder)) for found in folder.rglob("*.asaql")]
        raise NotFound(
            f"job {name!r}: cannot read its script {path}: {exc}",
            hint=nearest(config.query, known) or f"write it, or set [jobs.{name}] query",
            code="job.script",
        ) from exc
