"""Jobs in the console: figures, plan and operators of real jobs, as answers, as metrics and as pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
from plant import Incidents, Plant, ShiftedClock, add_jobs, backfill, services_of, until

from headrace.eventlog.memory import MemoryEventLog
from headrace.web.app import create_app
from headrace.web.serve import serve
from headrace.web.tasks import end

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]


class Stage(NamedTuple):
    app: Any
    plant: Plant


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Stage]:
    """A console beside two jobs: one has read 300 events, the other has no script."""
    clock = ShiftedClock()
    plant = Plant(MemoryEventLog(clock), machines=1)
    await backfill(plant, clock, 300, step_s=5)
    services = await services_of(plant.log, clock, Incidents())
    jobs = await add_jobs(plant.log, services.docs, clock, folder)  # type: ignore[arg-type]
    task = asyncio.create_task(jobs.run())
    try:
        await until(
            lambda: jobs.status()["factory"].rows_in == 300 and jobs.status()["wrong"].state == "failed", limit_s=20.0
        )
        await jobs.tell()
        yield Stage(create_app(services), plant)
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def client_of(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=stage.app)
    async with stage.app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_jobs_are_listed_with_what_they_did(tmp_path: Path) -> None:
    async with running(tmp_path) as stage, client_of(stage) as client:
        one, other = (await client.get("/api/jobs")).json()
        assert (one["name"], one["state"], one["rows_in"], one["lag"]) == ("factory", "running", 300, 0)
        assert one["streams"] == ["telemetry"]
        assert one["outputs"] == ["aggregates", "anomalies"]
        assert one["decoders"]["telemetry"] in ("compiled", "plain")
        assert (other["name"], other["state"]) == ("wrong", "failed")
        assert "wrong.asaql" in other["error"]


async def test_one_job_has_its_plan_and_what_each_operator_did(tmp_path: Path) -> None:
    async with running(tmp_path) as stage, client_of(stage) as client:
        details = (await client.get("/api/jobs/factory")).json()["details"]
        assert "output aggregates" in details["plan"]
        source, *others = details["operators"]
        assert source["kind"] == "input"
        assert source["rows_in"] > 0
        assert {one["output"] for one in others} == {"aggregates", "anomalies"}
        assert all(one["busy_s"] > 0 for one in others)
        missing = await client.get("/api/jobs/factori")
        assert missing.status_code == 404
        assert "factory" in missing.json()["error"]["hint"]


async def test_metrics_have_each_job_and_each_operator(tmp_path: Path) -> None:
    async with running(tmp_path) as stage, client_of(stage) as client:
        text = (await client.get("/metrics")).text
        assert 'headrace_job_running{job="factory"} 1.0' in text
        assert 'headrace_job_running{job="wrong"} 0.0' in text
        assert 'headrace_job_rows_in{job="factory"} 300.0' in text
        assert 'headrace_job_lag_events{job="factory"} 0.0' in text
        assert re.search(
            r'headrace_job_operator_busy_seconds{job="factory",operator="[^"]+",statement="anomalies"} ', text
        )
        assert re.search(r'headrace_job_decoder{input="telemetry",job="factory",kind="(compiled|plain)"} 1.0', text)


playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")


@pytest_asyncio.fixture
async def chromium() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        await browser.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium")
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (390, "dark")])
async def test_the_pages_of_jobs_draw_and_follow(chromium: Any, tmp_path: Path, width: int, theme: str) -> None:
    async with running(tmp_path) as stage:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(stage.app, "127.0.0.1", 0, on_started=started.set_result))
        try:
            base = f"http://127.0.0.1:{await asyncio.wait_for(started, 10)}"
            tab = await chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
            page = await tab.new_page()
            complaints: list[str] = []
            page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(base + "/jobs")
            await page.wait_for_selector('[data-job="factory"]')
            assert "1 job failed" in await page.inner_text("#notice")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await page.screenshot(path=str(tmp_path / "jobs.png"), full_page=True)
            await page.click('[data-job="factory"]')
            await page.wait_for_selector("#operators .operator")
            assert "output aggregates" in await page.inner_text("#plan")
            before = await page.inner_text("#facts")
            await stage.plant.step(stage.plant.log._clock.now() / 1e7)
            await page.wait_for_function("old => document.getElementById('facts').innerText !== old", arg=before)
            await page.wait_for_selector("#operators .meter")
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await page.screenshot(path=str(tmp_path / "job.png"), full_page=True)
            assert complaints == []
            await tab.close()
        finally:
            await end([serving])
