"""The parts of a project, and how each is run: stores and services become doors and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.assembly.hub import gateway_parts, run_gateway
from headrace.assembly.models import load_reference, served_models, user_functions
from headrace.assembly.platform import Platform
from headrace.core.config import Settings
from headrace.core.errors import NotFound, nearest
from headrace.core.lean import hide

Ready = Callable[[dict[str, str]], None]
RETAIN_EVERY_S = 60.0
LEAN_PARTS = ("gateway", "alerts", "web", "function:lake", "function:entities")
"""Parts that run no code but ours, none of which uses pandas. Jobs call models and functions call people's code."""


def parts(settings: Settings) -> list[str]:
    """The processes of a project, in the order they stop: the door first, what drains it later."""
    functions = [f"function:{name}" for name, function in settings.functions.items() if function.enabled]
    entities = ["function:entities"] if settings.warehouse.enabled and settings.entities else []
    return [*gateway_parts(settings), "jobs", *functions, "alerts", *entities, "function:lake", "web"]


async def run_part(platform: Platform, part: str, ready: Ready, stop: asyncio.Event) -> None:
    """Run one part until `stop` is set. `ready` is told the addresses that others may use."""
    kind, _, name = part.partition(":")
    if part in LEAN_PARTS or kind == "gateway":
        hide("pandas")
    runners: dict[str, Callable[[], Awaitable[None]]] = {
        "gateway": lambda: _gateway(platform, part, ready, stop),
        "jobs": lambda: _jobs(platform, ready, stop),
        "alerts": lambda: _alerts(platform, ready, stop),
        "web": lambda: _web(platform, ready, stop),
        "function": lambda: _function(platform, name, ready, stop),
    }
    if kind not in runners:
        raise NotFound(
            f"no part {part!r}", hint=nearest(part, parts(platform.settings)) or "see `headrace serve --help`"
        )
    await runners[kind]()


async def _until(stop: asyncio.Event, *work: Awaitable[None]) -> None:
    """Run `work` until `stop`, then cancel it; an error of any of them ends all."""
    tasks = [asyncio.ensure_future(item) for item in work]
    stopped = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in [*tasks, stopped]:
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)


async def _gateway(platform: Platform, part: str, ready: Ready, stop: asyncio.Event) -> None:
    async def until(*work: Awaitable[None]) -> None:
        once = (_retain(platform), _expire(platform)) if part == "gateway" else ()
        await _until(stop, *work, *once)

    await run_gateway(platform, part, ready, until)


async def _retain(platform: Platform) -> None:
    """Once a minute, give back the disk of what streams no longer keep."""
    from headrace.eventlog.retention import retain

    config = platform.settings.eventlog

    def retention_s(stream: str) -> float:
        own = platform.settings.streams.get(stream)
        return 3600 * (own.retention_h if own is not None and own.retention_h else config.retention_h)

    while True:
        await platform.clock.sleep(RETAIN_EVERY_S)
        await retain(platform.log, platform.clock, retention_s)


async def _expire(platform: Platform) -> None:
    while True:
        await platform.clock.sleep(RETAIN_EVERY_S)
        await platform.docs.expire()


async def _jobs(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.jobs.supervisor import JobSupervisor

    models = served_models(platform)
    supervisor = JobSupervisor(
        platform.settings.jobs,
        folder=platform.project.folder,
        log=platform.log,
        ledger=platform.ledger,
        docs=platform.docs,
        clock=platform.clock,
        state=platform.project.state_folder("journals"),
        functions=user_functions(models),
        reference=load_reference,
    )

    async def refresh() -> None:
        while True:
            await platform.clock.sleep(2.0)
            for model in models.values():
                await asyncio.to_thread(model.refresh)

    ready({})
    await _until(stop, supervisor.run(), refresh())


async def _function(platform: Platform, name: str, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.functions.process import run_entities, run_function, run_lake

    settings, means = platform.settings, platform.means()
    ready({})
    if name == "lake":
        streams = settings.streams

        def wanted(stream: str) -> bool:
            return stream not in streams or streams[stream].lake

        await _until(stop, run_lake(platform.lake, settings.lake, wanted=wanted, means=means))
    elif name == "entities":
        enabled = {table: config for table, config in settings.entities.items() if config.enabled}
        await _until(stop, run_entities(platform.warehouse, settings.warehouse, enabled, means=means))
    elif name in settings.functions:
        folder = platform.project.folder
        await _until(stop, run_function(name, settings.functions[name], folder=folder, means=means))
    else:
        known = [part.removeprefix("function:") for part in parts(settings) if part.startswith("function:")]
        raise NotFound(f"no function {name!r}", hint=nearest(name, known) or f"there are: {', '.join(known)}")


async def _alerts(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.alerts.service import AlertService

    service = AlertService(
        platform.log,
        platform.docs,
        platform.clock,
        rules=platform.settings.alerts,
        channels=platform.settings.channels,
        metrics=platform.metrics,
    )
    ready({})
    await _until(stop, service.run())


async def _web(platform: Platform, ready: Ready, stop: asyncio.Event) -> None:
    from headrace.assembly.console_hub import ConsoleHub
    from headrace.assembly.status import Status
    from headrace.web.app import create_app
    from headrace.web.serve import serve as serve_app
    from headrace.web.services import WebServices

    config, hub = platform.settings.web, ConsoleHub(platform)

    async def ledger_report() -> Mapping[str, Any]:
        return await platform.ledger_report()

    app = create_app(
        WebServices(
            log=platform.log,
            docs=platform.docs,
            clock=platform.clock,
            settings=platform.settings,
            history=platform.history,
            status=Status(platform).for_console,
            ledger_report=ledger_report,
            incidents=platform.incidents,
            metrics=platform.metrics,
            hub=hub.address,
            hub_facts=hub.facts,
            why=hub.why,
        )
    )

    def started(port: int) -> None:
        ready({"console": f"http://{'localhost' if config.host == '127.0.0.1' else config.host}:{port}"})

    await _until(stop, serve_app(app, config.host, config.port, on_started=started))
