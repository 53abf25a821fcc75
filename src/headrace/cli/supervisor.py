"""Runs a project's parts as processes: starts them in order, starts them again when they die, stops them gracefully.

Every child is told by the kernel to end when the supervisor dies, so no part outlives it unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from headrace.core import runstate
from headrace.core.config import Project
from headrace.core.errors import Unavailable

PR_SET_PDEATHSIG = 1
RESTART_DELAY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STOP_TIMEOUT_S = 20.0

log = structlog.get_logger()


def _die_with_parent() -> None:
    """In the child, before it becomes the part: ask Linux for SIGTERM when the supervisor goes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Keeps parts running until `stop`. `report(part, text)` is told what changes."""

    def __init__(self, project: Project, *, report: Callable[[str, str], None]) -> None:
        self._project = project
        self._report = report
        self._stopping = asyncio.Event()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, parts: Sequence[str], *, ready_timeout_s: float) -> None:
        """Start parts and wait until all of them are ready. Raises Unavailable that names the part and its log."""
        for part in parts:
            runstate.forget(self._project, part)
            self._tasks[part] = asyncio.create_task(self._keep(part), name=f"keep {part}")
        deadline = time.monotonic() + ready_timeout_s
        waiting = list(parts)
        while waiting:
            for part in list(waiting):
                state = runstate.read(self._project, part)
                if state is not None and state.state == "ready":
                    waiting.remove(part)
                    self._report(part, "ready")
                elif state is not None and state.state == "failed":
                    raise Unavailable(f"{part} failed to start: {state.problem}", hint=f"see {self._log_path(part)}")
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{', '.join(waiting)} not ready after {ready_timeout_s:g} s",
                    hint=f"see {self._log_path(waiting[0])}, or pass a longer --ready-timeout",
                )
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the gateway's workers first, so that nothing new comes in, then the rest together; SIGTERM, at last SIGKILL."""
        self._stopping.set()
        await asyncio.gather(*(self._end(part) for part in self._processes if part.partition(":")[0] == "gateway"))
        await asyncio.gather(*(self._end(part) for part in self._processes))
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _end(self, part: str) -> None:
        process = self._processes.get(part)
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            log.warning("part.killed", name=part, after_s=STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        runstate.forget(self._project, part)

    async def _keep(self, part: str) -> None:
        restarts = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await self._spawn(part)
            self._processes[part] = process
            code = await process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > 60:
                restarts = 0
            delay = RESTART_DELAY_S[min(restarts, len(RESTART_DELAY_S) - 1)]
            restarts += 1
            log.warning("part.died", name=part, exit_code=code, restart_in_s=delay)
            self._report(part, f"died ({_say(code)}); starting again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _spawn(self, part: str) -> asyncio.subprocess.Process:
        with self._log_path(part).open("ab") as sink:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace",
                "serve",
                part,
                "--project",
                str(self._project.folder),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,
            )

    def _log_path(self, part: str) -> Path:
        return self._project.state_folder("logs") / f"{part.replace(':', '-')}.log"


def _say(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def detach(arguments: list[str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start `headrace ARGUMENTS` in a session of its own, output to `log_path`."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "headrace", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=os.getcwd(),
        )
