"""`headrace up` and `headrace down`: everything of one project on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import structlog
import typer

from headrace import assembly
from headrace.cli.init import make_project
from headrace.cli.session import ProjectOption, err, out, run
from headrace.cli.supervisor import Supervisor, detach
from headrace.core import runstate
from headrace.core.config import FILE_NAME, Project, load_project
from headrace.core.errors import Conflict, HeadraceError, Unavailable
from headrace.core.observe import logs
from headrace.warehouse.server import PostgresServer

DOWN_TIMEOUT_S = 60.0
DATABASE_CHECK_S = 1.0


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)


def up(
    target: Annotated[
        str | None, typer.Argument(help="A project folder, or a blueprint's name (then a project is made in ./NAME).")
    ] = None,
    project: ProjectOption = None,
    detached: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all is ready; stop it with `headrace down`.")
    ] = False,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that the parts may take to get ready.")] = 90.0,
) -> None:
    """Start the gateway, jobs, functions, alerts and console of a project.

    Example: headrace up factory --detach
    """
    folder = _folder_of(target) if target else None
    loaded = load_project(str(folder) if folder else project)
    if detached:
        start_detached(loaded, ready_timeout)
    else:
        run(serve_all(loaded, ready_timeout))


def down(project: ProjectOption = None) -> None:
    """Stop what `headrace up` started; nothing acknowledged is lost.

    Example: headrace down --project factory
    """
    stop(load_project(project))


def start_detached(project: Project, ready_timeout_s: float) -> None:
    """Start `headrace up` in the background and return when every part is ready. Raises Unavailable with the reason."""
    if runstate.read(project, "supervisor") is not None:
        raise Conflict(f"{project.folder} is up already", hint="see `headrace status`, or stop it with `headrace down`")
    log_path = project.state_folder("logs") / "supervisor.log"
    arguments = ["up", "--project", str(project.folder), "--ready-timeout", str(ready_timeout_s)]
    child = detach(arguments, log_path)
    deadline = time.monotonic() + ready_timeout_s + 5
    while time.monotonic() < deadline:
        state = runstate.read(project, "supervisor")
        if state is not None and state.pid == child.pid and state.state == "ready":
            print_addresses(project)
            return
        if child.poll() is not None:
            raise Unavailable(f"headrace up ended: {_last_words(log_path)}", hint=f"see {log_path}")
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        child.terminate()
        child.wait(DOWN_TIMEOUT_S)
    raise Unavailable(
        f"not ready after {ready_timeout_s:g} s", hint=f"see {log_path}, or pass a longer --ready-timeout"
    )


async def serve_all(project: Project, ready_timeout_s: float) -> None:
    """Run a project until SIGINT or SIGTERM."""
    logs.setup("supervisor", level=project.settings.logs.level)
    with _only_one(project):
        own = runstate.own_state("supervisor")
        runstate.write(project, own)
        stop_asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop_asked.set)
        out.print(f"headrace: starting [bold]{project.settings.project.name}[/] in {project.folder}")
        server = await assembly.prepare(project, lambda text: out.print(f"  {text}", markup=False))
        database = asyncio.create_task(_keep_database(server))
        if server is not None:
            own.addresses["warehouse"] = server.url
        supervisor = Supervisor(project, report=_report)
        try:
            starting = asyncio.create_task(_start(project, supervisor, ready_timeout_s))
            asked = asyncio.create_task(stop_asked.wait())
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                own.state = "ready"
                runstate.write(project, own)
                print_addresses(project)
                out.print("stop with Ctrl-C")
                await asked
            starting.cancel()
            out.print("headrace: stopping")
        except HeadraceError as exc:
            structlog.get_logger().error("up.failed", code=exc.code, problem=str(exc))
            raise
        finally:
            await supervisor.stop()
            database.cancel()
            await asyncio.gather(database, return_exceptions=True)
            if server is not None:
                await server.stop()
            runstate.forget(project, "supervisor")


async def _start(project: Project, supervisor: Supervisor, ready_timeout_s: float) -> None:
    """Start all parts; where models must be trained first, everything but the jobs that call them starts meanwhile."""
    parts = assembly.parts(project.settings)
    untrained = assembly.untrained(project)
    later = [part for part in parts if part == "jobs" and untrained]
    first = [part for part in parts if part not in later]
    starting = supervisor.start(first, ready_timeout_s=ready_timeout_s)
    await asyncio.gather(starting, *(_train(project, name) for name in untrained))
    await supervisor.start(later, ready_timeout_s=ready_timeout_s)


async def _train(project: Project, name: str) -> None:
    """Train a model in a process of its own. One that fails is reported, and the job that calls it says so too."""
    _report(f"model {name}", "training")
    command = (sys.executable, "-m", "headrace", "model", "train", name, "--project", str(project.folder))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = await process.communicate()
    lines = output.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    _report(f"model {name}", lines[-1] if process.returncode == 0 else f"not trained: {' '.join(lines[-2:])}")


async def _keep_database(server: PostgresServer | None) -> None:
    """Start our own PostgreSQL again when it dies; its clients wait for it meanwhile."""
    log = structlog.get_logger()
    while server is not None:
        await asyncio.sleep(DATABASE_CHECK_S)
        if problem := server.problem():
            log.warning("database.died", problem=problem)
            _report("warehouse", "died; starting again")
            try:
                await server.start()
            except HeadraceError as exc:
                log.error("database.not_started", problem=str(exc))


def stop(project: Project) -> None:
    """Ask the supervisor to stop and wait until it has."""
    state = runstate.read(project, "supervisor")
    if state is None:
        out.print("not running")
        return
    os.kill(state.pid, signal.SIGTERM)
    try:
        psutil.Process(state.pid).wait(DOWN_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired as exc:
        raise Unavailable(
            f"still stopping after {DOWN_TIMEOUT_S:g} s (pid {state.pid})", hint="try again in a moment"
        ) from exc
    out.print("stopped")


def print_addresses(project: Project) -> None:
    """Where people and devices go: the console first."""
    found: dict[str, str] = {}
    for state in runstate.read_all(project):
        found |= state.addresses
    for name in ("console", "mqtt", "mqtt-plain", "https", "broker", "broker-tls", "ca"):
        if name in found:
            out.print(f"  {name:<10} {found[name]}", markup=False)


def _report(part: str, text: str) -> None:
    out.print(f"  {part:<18} {text}", markup=False)


def _folder_of(target: str) -> Path:
    """The folder that TARGET means: a project, or a blueprint that becomes one in ./NAME."""
    folder = Path(target)
    if (folder / FILE_NAME).is_file() or folder.is_dir():
        return folder
    make_project(folder, target)
    err.print(f"made ./{folder} from blueprint {target}", markup=False)
    return folder


@contextlib.contextmanager
def _only_one(project: Project) -> Iterator[None]:
    """Hold the project's lock: two supervisors on one project would fight over its ports and processes."""
    path = project.state_folder("run") / "supervisor.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise Conflict(
                f"{project.folder} is up already", hint="see `headrace status`, or stop it with `headrace down`"
            ) from exc
        yield


def _last_words(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
    return " ".join(line.strip() for line in lines[-2:]) or "it said nothing"
