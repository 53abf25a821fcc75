"""The jobs of a project live in one process, and one that fails stops no other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pytest
from job_plant import Plant

from headrace.core.clock import SystemClock
from headrace.core.config import JobConfig, ReferenceConfig
from headrace.core.errors import Unavailable
from headrace.docstore.memory import MemoryDocStore
from headrace.jobs.supervisor import JobSupervisor
from headrace.sql.functions.user import UserFunction


class Away:
    """A log whose first reads fail."""

    def __init__(self, log: Any, times: int) -> None:
        self.log, self.times = log, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    async def read_merged(self, *arguments: Any, **options: Any) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise Unavailable("the disk is full")
        return await self.log.read_merged(*arguments, **options)


def supervisor(plant: Plant, jobs: dict[str, JobConfig], **options: Any) -> JobSupervisor:
    def reference(folder: Path, path: str) -> pa.Table:
        return pa.table({"machineId": ["m0"], "site": ["north"]})

    return JobSupervisor(
        jobs,
        folder=plant.folder,
        state=plant.folder / "journals",
        log=options.get("log") or plant.log,
        ledger=plant.ledger,
        docs=options.get("docs") or MemoryDocStore(plant.clock),
        clock=SystemClock(),
        functions=options.get("functions", {}),
        reference=reference,
        rng=random.Random(1),
    )


@asynccontextmanager
async def running(jobs: JobSupervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(jobs.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is a status, not an event
            await asyncio.sleep(0.01)


def script(plant: Plant, name: str, text: str, **config: Any) -> JobConfig:
    (plant.folder / f"{name}.asaql").write_text(text)
    return JobConfig(query=f"{name}.asaql", linger_ms=1.0, checkpoint_s=0.1, **config)


async def test_a_failing_job_does_not_stop_the_others(plant: Plant) -> None:
    docs = MemoryDocStore(plant.clock)
    jobs = {
        "good": script(plant, "good", "SELECT * INTO copy FROM telemetry"),
        "wrong": script(plant, "wrong", "SELECT a,, b INTO x FROM telemetry"),
        "strict": script(
            plant, "strict", "SELECT CAST(machineId AS bigint) AS n INTO y FROM telemetry", on_error="stop"
        ),
        "gone": JobConfig(query="godo.asaql"),
        "off": script(plant, "off", "SELECT * INTO z FROM telemetry", enabled=False),
    }
    made = supervisor(plant, jobs, docs=docs)
    await plant.log.append("telemetry", plant.readings([1.0] * 5))
    async with running(made):
        await until(lambda: made.status()["good"].rows_out == 5)
        await until(lambda: all(made.status()[name].state == "failed" for name in ("wrong", "strict", "gone")))
        await plant.log.append("telemetry", plant.readings([1.0] * 5, first=5))
        await until(lambda: made.status()["good"].rows_out == 10)
    status = made.status()
    assert "line 1, column" in status["wrong"].error
    assert "did you mean 'good.asaql'" in status["gone"].error
    assert "off" not in status
    told = {document.id: document.body for document in await docs.query("runtime")}
    assert told["job:good"]["state"] == "stopped"
    assert told["job:strict"]["state"] == "failed"
    assert len(await plant.rows("copy")) == 10
    assert "z" not in await plant.log.streams()


async def test_a_job_in_trouble_of_the_moment_starts_again_by_itself(plant: Plant) -> None:
    made = supervisor(
        plant, {"copy": script(plant, "copy", "SELECT * INTO copy FROM telemetry")}, log=Away(plant.log, 2)
    )
    await plant.log.append("telemetry", plant.readings([1.0] * 5))
    async with running(made):
        await until(lambda: made.status()["copy"].error == "the disk is full")
        await until(lambda: made.status()["copy"].rows_out == 5)
        assert made.status()["copy"].error == ""


async def test_a_function_is_called_with_columns(plant: Plant) -> None:
    functions = {"udf.twice": UserFunction("udf.twice", lambda columns: pa.compute.multiply(columns[0], 2))}
    text = "SELECT machineId, t, udf.twice(t) AS s INTO scored FROM telemetry"
    made = supervisor(plant, {"scored": script(plant, "scored", text)}, functions=functions)
    await plant.log.append("telemetry", plant.readings([1.0] * 5))
    async with running(made):
        await until(lambda: made.status()["scored"].rows_out == 5)
    assert all(row["s"] == 2 * row["t"] for row in await plant.bodies("scored"))


async def test_reference_data_is_read_for_the_job(plant: Plant) -> None:
    text = "SELECT t.machineId, r.site INTO joined FROM telemetry t JOIN machines r ON t.machineId = r.machineId"
    jobs = {"joined": script(plant, "joined", text, reference={"machines": ReferenceConfig(path="machines.csv")})}
    made = supervisor(plant, jobs)
    await plant.log.append("telemetry", plant.readings([1.0] * 6))
    async with running(made):
        await until(lambda: made.status()["joined"].rows_out == 2)
    assert {row["site"] for row in await plant.bodies("joined")} == {"north"}
