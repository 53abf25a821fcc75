"""What runs, where, how far behind, and what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.assembly.platform import Platform
from headrace.assembly.processes import parts
from headrace.core import runstate


class Status:
    """What runs, where, how far behind, and what it uses."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._last: dict[int, tuple[float, float]] = {}  # pid -> (moment, CPU seconds)

    async def report(self) -> dict[str, Any]:
        """As `headrace status --json` prints it."""
        project = self._platform.project
        states = {state.part: state for state in runstate.read_all(project)}
        used = runstate.usage(list(states.values()))
        parts_now: list[dict[str, Any]] = []
        for part in ["supervisor", *parts(project.settings)]:
            state = states.get(part)
            row: dict[str, Any] = {"part": part, "state": "stopped", "pid": None, "problem": "", "addresses": {}}
            if state is not None:
                row |= {"state": state.state, "pid": state.pid, "problem": state.problem, "addresses": state.addresses}
            parts_now.append(row | used.get(part, {}))
        work = [document.body for document in await self._platform.docs.query("runtime")]
        return {
            "project": project.settings.project.name,
            "folder": str(project.folder),
            "healthy": all(part["state"] == "ready" for part in parts_now) and not any(map(self._failed, work)),
            "parts": parts_now,
            "work": sorted(work, key=lambda body: (str(body.get("part")), str(body.get("name")))),
        }

    def _failed(self, work: Mapping[str, Any]) -> bool:
        """Whether somebody must act before a job goes on. What a job of the past left behind does not count."""
        return (
            work.get("part") == "job"
            and work.get("state") == "failed"
            and str(work.get("name")) in self._platform.settings.jobs
        )

    async def for_console(self) -> Mapping[str, Any]:
        """The same, in the console's terms: CPU in percent since the last time it was asked, lag per part."""
        found = await self.report()
        lags: dict[str, int] = {}
        for work in found["work"]:
            part = str(work.get("part", ""))
            lags[part] = lags.get(part, 0) + int(work.get("lag") or 0)
        now = self._platform.clock.monotonic()
        rows = []
        for part in found["parts"]:
            pid, seconds = part["pid"], part.get("cpu_s", 0.0)
            before = self._last.get(pid) if pid else None
            if pid:
                self._last[pid] = (now, seconds)
            percent = 100 * (seconds - before[1]) / (now - before[0]) if before and now > before[0] else None
            rows.append(
                {
                    "name": part["part"],
                    "state": part["state"],
                    "pid": pid,
                    "cpu": percent,
                    "memory": int(part.get("memory_mb", 0) * 1e6) or None,
                    "lag": lags.get(part["part"].split(":")[0] if part["part"] == "jobs" else part["part"]),
                    "detail": part["problem"],
                }
            )
        return {"parts": rows, "work": found["work"]}
