"""The pages in Chromium: they draw, they follow, they can be worked with, and they complain about nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from plant import Incidents, Plant, ShiftedClock, backfill, services_of, set_some_aside

from headrace.core.clock import TICKS_PER_S
from headrace.core.schema import event_batch
from headrace.eventlog.memory import MemoryEventLog
from headrace.web.app import create_app
from headrace.web.serve import serve
from headrace.web.tasks import end

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("/", "/machine?id=fac1-cnc-001", "/history", "/operations")
EVIL = '"><img src=x onerror="window.hacked=1">'
WAIT_MS = 15_000


class Stage(NamedTuple):
    page: Any
    base: str
    plant: Plant
    clock: ShiftedClock
    incidents: Incidents
    complaints: list[str]
    serving: asyncio.Task[None]

    async def step(self) -> None:
        await self.plant.step(self.clock.now() / TICKS_PER_S)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        await browser.close()


@asynccontextmanager
async def stage(browser: Any, **context: Any) -> AsyncIterator[Stage]:
    """A console on a free port and a page that writes down every complaint of the browser."""
    clock, incidents = ShiftedClock(), Incidents()
    plant = Plant(MemoryEventLog(clock), machines=2)
    await backfill(plant, clock, 300, step_s=5)
    await set_some_aside(plant)
    incidents.open("i1", "fac1-cnc-001", "critical", "fac1-cnc-001 runs hot", clock.now(), temperature=91.5)
    app = create_app(await services_of(plant.log, clock, incidents), tick_s=0.2)
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, on_started=started.set_result))
    base = f"http://127.0.0.1:{await asyncio.wait_for(started, 10)}"
    complaints: list[str] = []
    try:
        tab = await browser.new_context(**context)
        page = await tab.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield Stage(page, base, plant, clock, incidents, complaints, serving)
        await tab.close()
    finally:
        await end([serving])


async def test_every_page_draws_without_a_complaint_and_leaves_the_machine_only_for_us(chromium: Any) -> None:
    async with stage(chromium) as it:
        asked: list[str] = []
        it.page.on("request", lambda request: asked.append(request.url))
        for path, ready in zip(PAGES, (".tile", ".u-over", "#panels .u-over", "#stages .fold"), strict=True):
            await it.page.goto(it.base + path)
            await it.page.wait_for_selector(ready)
        assert it.complaints == []
        assert all(url.startswith((it.base, "data:")) for url in asked)


async def test_a_live_point_appears_on_the_machine_page_and_a_new_field_gets_its_panel(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/machine?id=fac1-cnc-001")
        await it.page.wait_for_selector('[data-field="temperature"] .u-over')
        assert await it.page.locator('[data-field="humidity"]').count() == 0
        before = await it.page.inner_text("#last-time")
        it.plant.extra_field = True
        await it.step()
        await it.page.wait_for_function(
            "before => document.getElementById('last-time').textContent !== before", arg=before
        )
        await it.page.wait_for_selector('[data-field="humidity"] .u-over')
        assert await it.page.locator('#panels-scored [data-field="rul_s"]').count() == 1
        assert await it.page.locator('#panels-aggregates [data-field="avgTemperature"]').count() == 1
        assert "min" in await it.page.inner_text("#fact-life") or "h" in await it.page.inner_text("#fact-life")
        assert it.complaints == []


async def test_an_anomaly_is_marked_when_it_comes(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/machine?id=fac2-cnc-001")
        await it.page.wait_for_selector('[data-field="temperature"] .u-over')
        machine = next(one for one in it.plant.machines if one.id == "fac2-cnc-001")
        row = {"machineId": machine.id, "temperature": 99.5, "score": 0.001}
        await it.plant.log.append("anomalies", it.plant.batch([(machine, row)]))
        await it.page.wait_for_function("document.getElementById('anomalies').textContent.includes('99.5')")
        marks = await it.page.inner_text('[data-field="temperature"] .panel-marks')
        assert "anomal" in marks


async def test_an_alert_is_acknowledged_with_a_click(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/")
        await it.page.wait_for_selector('.tile[data-state="critical"]')
        await it.page.click('[data-alert="i1"]')
        await it.page.wait_for_selector('#alerts [data-id="i1"][data-done="true"]')
        assert it.incidents.all[0]["state"] == "acknowledged"
        assert it.complaints == []


async def test_light_and_dark_follow_the_system_and_the_switch_and_are_kept(chromium: Any) -> None:
    async with stage(chromium, color_scheme="dark") as it:
        back = "getComputedStyle(document.body).backgroundColor"
        await it.page.goto(it.base + "/")
        await it.page.wait_for_selector(".tile")
        dark = await it.page.evaluate(back)
        await it.page.click("#theme")
        light = await it.page.evaluate(back)
        assert dark != light
        await it.page.reload()
        assert await it.page.evaluate(back) == light
        await it.page.click("#zone")
        assert await it.page.evaluate("document.documentElement.dataset.zone") == "utc"


@pytest.mark.parametrize("path", PAGES)
async def test_a_phone_of_390_pixels_never_scrolls_sideways(chromium: Any, path: str) -> None:
    async with stage(chromium, viewport={"width": 390, "height": 844}) as it:
        await it.page.goto(it.base + path)
        await it.page.wait_for_load_state("load")
        await it.page.wait_for_selector(".tile, .u-over, .fold")
        assert await it.page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_a_hostile_device_name_is_shown_as_text_on_every_page(chromium: Any) -> None:
    async with stage(chromium) as it:
        rows = event_batch({"_event_id": ["x"], "_device": [EVIL], "_site": [EVIL], "_body": [b'{"<b>t</b>": 1.5}']})
        await it.plant.log.append("telemetry", rows)
        it.incidents.open("x", EVIL, "warning", f"{EVIL} is odd", it.clock.now())
        await it.page.goto(it.base + "/")
        tile = it.page.locator(".tile", has_text=EVIL)
        await tile.wait_for()
        await tile.click()
        await it.page.wait_for_selector(".u-over")
        assert EVIL in await it.page.inner_text("h1")
        await it.page.goto(it.base + "/history")
        await it.page.wait_for_selector(".u-over")
        assert await it.page.evaluate("window.hacked") is None
        assert it.complaints == []


async def test_sql_is_asked_and_a_mistake_is_explained(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/history")
        await it.page.wait_for_selector(".u-over")
        await it.page.fill("#sql", "SELECT count(*) AS n FROM telemetry")
        await it.page.click("#run")
        await it.page.wait_for_selector("#answer td")
        assert await it.page.inner_text("#answer td") == str(await _events(it))
        await it.page.fill("#sql", "SELEKT 1")
        await it.page.press("#sql", "Control+Enter")
        await it.page.wait_for_selector("#sql-problem:not([hidden])")
        assert "SELEKT" in await it.page.inner_text("#sql-problem")


async def _events(it: Stage) -> int:
    return sum((await it.plant.log.bounds("telemetry"))[1])


async def test_a_lost_console_is_told_with_the_age_of_what_is_shown(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/")
        await it.page.wait_for_selector(".tile")
        await end([it.serving])
        await it.page.wait_for_selector("#notice:not([hidden])")
        assert "Not connected" in await it.page.inner_text("#notice")
        assert "What you see is from" in await it.page.inner_text("#notice")


async def test_the_keyboard_reaches_the_machines_and_focus_is_seen(chromium: Any) -> None:
    async with stage(chromium) as it:
        await it.page.goto(it.base + "/")
        await it.page.wait_for_selector(".tile")
        await it.page.keyboard.press("Tab")
        assert await it.page.evaluate("document.activeElement.className") == "skip"
        await it.page.focus(".tile")
        await it.page.keyboard.press("Tab")
        await it.page.keyboard.press("Shift+Tab")
        assert await it.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await it.page.keyboard.press("Enter")
        await it.page.wait_for_selector("#facts")
