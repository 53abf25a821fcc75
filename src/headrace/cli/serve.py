"""`headrace serve PART`: one part of a project in this process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import signal
import socket
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
import typer
from prometheus_client import start_http_server

from headrace import assembly
from headrace.cli.session import ProjectOption, run
from headrace.core import runstate
from headrace.core.config import Project, load_project
from headrace.core.errors import Conflict, HeadraceError
from headrace.core.observe import logs

PREDECESSOR_S = 30.0
"""How long to wait for one of the same part that is still stopping."""
GC_ALLOCATIONS = 20_000
"""Objects made before Python looks for garbage cycles: batches make thousands of short-lived ones, and no cycles."""


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    part: Annotated[
        str, typer.Argument(help="gateway, gateway:2 (its second worker), jobs, alerts, web, or function:NAME")
    ],
    project: ProjectOption = None,
) -> None:
    """Run one part until SIGTERM; `headrace up` runs all of them this way.

    Example: headrace serve gateway --project plant
    """
    run(serve_part(load_project(project), part))


async def serve_part(project: Project, part: str) -> None:
    """Run a part, keep its run file true, and stop it gracefully when asked."""
    logs.setup(part, level=project.settings.logs.level)
    async with alone(project, part):
        await _serve(project, part)


@contextlib.asynccontextmanager
async def alone(project: Project, part: str, *, wait_s: float = PREDECESSOR_S) -> AsyncIterator[None]:
    """Hold the part's lock, which the kernel takes from the dead. Raises Conflict when another keeps it.

    When a supervisor is killed its parts still finish what they do, for seconds. Started again meanwhile, two of a kind
    would write one journal, and the old one's last act would be to remove the new one's run file.
    """
    path = project.state_folder("run") / f"{part}.lock"
    deadline = asyncio.get_running_loop().time() + wait_s
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Conflict(
                        f"another {part} of {project.folder} runs", hint="see `headrace status`; stop that one first"
                    ) from exc
            await asyncio.sleep(0.05)
        yield


async def _serve(project: Project, part: str) -> None:
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
        _settle_memory()
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


def _settle_memory() -> None:
    """What was loaded so far stays for good: never look through it for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
