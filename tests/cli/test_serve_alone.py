"""A part of a project runs once: a new one waits for its predecessor, and takes over at once from a dead one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.serve import alone
from headrace.core.config import Project, Settings
from headrace.core.errors import Conflict

HOLDER = """
import asyncio, sys
from pathlib import Path
from headrace.cli.serve import alone
from headrace.core.config import Project, Settings

async def main():
    async with alone(Project(Path(sys.argv[1]), Settings()), "jobs"):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, Settings())


async def test_a_part_waits_for_one_that_is_still_stopping(project: Project) -> None:
    order: list[str] = []
    stop = asyncio.Event()

    async def first() -> None:
        async with alone(project, "jobs"):
            order.append("first runs")
            await stop.wait()
            order.append("first ended")

    async def second() -> None:
        async with alone(project, "jobs"):
            order.append("second runs")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(first())
        await asyncio.sleep(0)
        tasks.create_task(second())
        tasks.create_task(asyncio.to_thread(lambda: None)).add_done_callback(lambda _: stop.set())
    assert order == ["first runs", "first ended", "second runs"]


async def test_one_that_stays_is_a_conflict_with_its_name(project: Project) -> None:
    async with alone(project, "jobs"):
        with pytest.raises(Conflict, match="another jobs"):
            async with alone(project, "jobs", wait_s=0.0):
                pass
        async with alone(project, "web", wait_s=0.0):
            pass


async def test_a_killed_part_leaves_its_place_to_the_next(project: Project) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(project.folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert await asyncio.wait_for(holder.stdout.readline(), 30) == b"held\n"
        with pytest.raises(Conflict):
            async with alone(project, "jobs", wait_s=0.0):
                pass
    finally:
        holder.kill()
        await holder.communicate()
    async with alone(project, "jobs", wait_s=5.0):
        pass
