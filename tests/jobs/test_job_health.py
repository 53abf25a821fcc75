"""A project whose job failed is not healthy, however well its processes run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace import assembly
from headrace.assembly.processes import parts
from headrace.core import runstate
from headrace.core.config import load_project


@pytest.mark.parametrize(
    ("job", "state", "healthy"),
    [("mean", "running", True), ("mean", "failed", False), ("mean", "waiting", True), ("gone", "failed", True)],
)
async def test_a_failed_job_makes_the_project_unhealthy(tmp_path: Path, job: str, state: str, healthy: bool) -> None:
    (tmp_path / "headrace.toml").write_text('[project]\nname = "p"\n[jobs.mean]\nquery = "mean.asaql"\n')
    project = load_project(str(tmp_path))
    for part in ["supervisor", *parts(project.settings)]:
        own: Any = runstate.own_state(part)
        own.state = "ready"
        runstate.write(project, own)
    platform = assembly.Platform(project)
    await platform.docs.put("runtime", f"job:{job}", {"part": "job", "name": job, "state": state, "error": "why"})
    assert (await assembly.Status(platform).report())["healthy"] is healthy
    await platform.close()
