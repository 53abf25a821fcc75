"""The device pages in Chromium, with a real hub and a device that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from answering_device import answering_device
from hub_stage import HubStage, hub_stage
from plant import until

from headrace.web.serve import serve
from headrace.web.tasks import end

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WAIT_MS = 15_000


class Tab(NamedTuple):
    page: Any
    base: str
    hub: HubStage
    complaints: list[str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        await browser.close()


@asynccontextmanager
async def tab(browser: Any, folder: Path, *devices: str, **context: Any) -> AsyncIterator[Tab]:
    async with hub_stage(folder, *devices) as hub:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(hub.app, "127.0.0.1", 0, on_started=started.set_result))
        base = f"http://127.0.0.1:{await asyncio.wait_for(started, 10)}"
        complaints: list[str] = []
        try:
            opened = await browser.new_context(**context)
            page = await opened.new_page()
            page.set_default_timeout(WAIT_MS)
            page.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
            page.on("pageerror", lambda problem: complaints.append(str(problem)))
            yield Tab(page, base, hub, complaints)
            await opened.close()
        finally:
            await end([serving])


async def test_devices_are_found_made_and_opened(chromium: Any, tmp_path: Path) -> None:
    async with tab(chromium, tmp_path, *(f"press-{number:03d}" for number in range(60)), "lathe-1") as it:
        await it.page.goto(it.base + "/devices")
        await it.page.wait_for_selector('[data-id="lathe-1"]')
        assert "1–50 of 61" in await it.page.inner_text("#range")
        await it.page.click("#next")
        await it.page.wait_for_selector('[data-id="press-059"]')
        await it.page.fill("#find", "lathe")
        await playwright.expect(it.page.locator("#list [data-id]")).to_have_count(1, timeout=WAIT_MS)
        await it.page.click("#new")
        await it.page.fill("#create-form [name=id]", "robot-7")
        await it.page.keyboard.press("Enter")
        await it.page.wait_for_url("**/device?id=robot-7")
        assert await it.hub.key("robot-7")
        assert it.complaints == []


async def test_a_twin_is_edited_and_what_is_no_json_is_told_beside_it(chromium: Any, tmp_path: Path) -> None:
    async with tab(chromium, tmp_path, "a") as it:
        await it.page.goto(it.base + "/device?id=a")
        await playwright.expect(it.page.locator("#desired")).to_have_value("{}", timeout=WAIT_MS)
        await it.page.fill("#desired", '{"rate": ')
        assert "Not JSON" in await it.page.inner_text("#desired-bad")
        assert await it.page.is_disabled("#twin-save")
        await it.page.fill("#desired", '{"rate": 7}')
        await it.page.click("#twin-save")
        await playwright.expect(it.page.locator("#twin-note")).to_contain_text("saved", timeout=WAIT_MS)
        twin = (await it.hub.client.get("/api/hub/devices/a")).json()["twin"]
        assert twin["properties"]["desired"]["rate"] == 7
        await it.page.fill("#desired", '{"rate": 8}')
        await it.hub.client.put("/api/hub/devices/a/twin", json={"tags": {}, "desired": {"rate": 9}, "etag": "*"})
        await it.page.click("#twin-save")
        await it.page.click("#twin-newest")
        await playwright.expect(it.page.locator("#desired")).to_have_value('{\n  "rate": 9\n}', timeout=WAIT_MS)


async def test_a_method_is_invoked_a_message_sent_and_telemetry_seen(chromium: Any, tmp_path: Path) -> None:
    async with tab(chromium, tmp_path, "a") as it:
        async with answering_device(it.hub.ports.plain_port, "a", await it.hub.key("a")) as device:
            await it.page.goto(it.base + "/device?id=a")
            await it.page.fill("#method-form [name=name]", "reboot")
            await it.page.fill("#method-form [name=payload]", '{"delay": 3}')
            await it.page.click("#method-form [type=submit]")
            await it.page.wait_for_selector("#method-payload:not(:empty)")
            assert '"did": "reboot"' in await it.page.inner_text("#method-payload")
            await it.page.fill("#mail-form [name=body]", "hello")
            await it.page.click("#mail-form [type=submit]")
            await until(lambda: device.mail == [b"hello"])
            device.send({"temperature": 61.5}, "priority=high")
            await playwright.expect(it.page.locator("#messages")).to_contain_text("61.5", timeout=WAIT_MS)
            assert "priority=high" in await it.page.inner_text("#messages")
        assert it.complaints == []


async def test_keys_are_hidden_until_asked_and_deleting_needs_the_name(chromium: Any, tmp_path: Path) -> None:
    async with tab(chromium, tmp_path, "a") as it:
        await it.page.goto(it.base + "/device?id=a")
        await it.page.wait_for_selector("#facts dt")
        assert await it.hub.key("a") not in await it.page.content()
        await it.page.click("#show-keys")
        await it.page.wait_for_selector(".qr")
        await it.page.click("#delete")
        assert await it.page.is_disabled("dialog[open] .danger")
        await it.page.fill("dialog[open] input", "a")
        await it.page.click("dialog[open] .danger")
        await it.page.wait_for_url("**/devices")
        assert (await it.hub.client.get("/api/hub/devices/a")).status_code == 404


@pytest.mark.parametrize("path", ["/devices", "/device?id=a", "/enrolments"])
async def test_device_pages_fit_a_phone(chromium: Any, tmp_path: Path, path: str) -> None:
    async with tab(chromium, tmp_path, "a", viewport={"width": 390, "height": 844}) as it:
        await it.page.goto(it.base + path)
        await it.page.wait_for_selector("#list [data-id], #facts dt, #group td.empty")
        assert await it.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert it.complaints == []
