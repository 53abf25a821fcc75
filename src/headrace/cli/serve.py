"""`headrace serve PART`: one part of a project in this process."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Annotated

import structlog
import typer
from prometheus_client import start_http_server

from headrace import assembly
from headrace.cli.session import ProjectOption, run
from headrace.core import runstate
from headrace.core.config import Project, load_project
from headrace.core.errors import HeadraceError
from headrace.core.observe import logs


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    part: Annotated[str, typer.Argument(help="gateway, jobs, alerts, web, or function:NAME")],
    project: ProjectOption = None,
) -> None:
    """Run one part until SIGTERM; `headrace up` runs all of them this way.

    Example: headrace serve gateway --project plant
    """
    run(serve_part(load_project(project), part))


async def serve_part(project: Project, part: str) -> None:
    """Run a part, keep its run file true, and stop it gracefully when asked."""
    logs.setup(part, level=project.settings.logs.level)
    log = structlog.get_logger()
    state = runstate.own_state(part)
    runstate.write(project, state)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    platform = assembly.Platform(project)
    port = _free_port()
    start_http_server(port, "127.0.0.1", registry=platform.metrics.registry)

    def ready(addresses: dict[str, str]) -> None:
        state.state = "ready"
        state.addresses = {**addresses, "metrics": f"http://127.0.0.1:{port}/metrics"}
        runstate.write(project, state)
        log.info("part.ready", **addresses)

    try:
        await assembly.run_part(platform, part, ready, stop)
    except HeadraceError as exc:
        state.state, state.problem = "failed", str(exc)
        runstate.write(project, state)
        log.error("part.failed", code=exc.code, problem=str(exc))
        # Stay a moment, so that whoever waits for us reads why before the process is gone.
        await asyncio.sleep(0.5)
        raise
    finally:
        await platform.close()
    log.info("part.stopped")
    runstate.forget(project, part)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
