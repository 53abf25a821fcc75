"""What runs: one small file per process in `.headrace/run`, written by the process itself, read by everyone.

A file is evidence only while its process lives: the pid together with its start time is checked on every read, because
pids are used again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from headrace.core.config import Project

State = Literal["starting", "ready", "failed"]


class PartState(msgspec.Struct, kw_only=True):
    """One process of a running project."""

    part: str
    pid: int
    born: float  # the process's start time, as the system tells it
    state: State = "starting"
    addresses: dict[str, str] = {}
    problem: str = ""
    restarts: int = 0

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def own_state(part: str) -> PartState:
    """A fresh state for this very process."""
    return PartState(part=part, pid=os.getpid(), born=psutil.Process().create_time())


def write(project: Project, state: PartState) -> None:
    path = project.state_folder("run") / f"{state.part}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(path)


def read(project: Project, part: str) -> PartState | None:
    """The state of a part, or None where it does not run."""
    return _decode(project.state / "run" / f"{part}.json")


def read_all(project: Project) -> list[PartState]:
    """The states of all parts that live, the supervisor included."""
    folder = project.state / "run"
    found = [_decode(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return [state for state in found if state is not None]


def forget(project: Project, part: str) -> None:
    (project.state / "run" / f"{part}.json").unlink(missing_ok=True)


def usage(states: list[PartState]) -> dict[str, dict[str, Any]]:
    """CPU seconds so far and resident memory of each part, its children (PostgreSQL's, say) included."""
    found: dict[str, dict[str, Any]] = {}
    for state in states:
        try:
            process = psutil.Process(state.pid)
            family = [process] if state.part == "supervisor" else [process, *process.children(recursive=True)]
            seconds = sum(sum(member.cpu_times()[:2]) for member in family)
            memory = sum(member.memory_info().rss for member in family)
            found[state.part] = {"cpu_s": round(seconds, 2), "memory_mb": round(memory / 1e6, 1)}
        except psutil.NoSuchProcess:
            continue
    return found


def _decode(path: Path) -> PartState | None:
    try:
        state = msgspec.json.decode(path.read_bytes(), type=PartState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return state if state.alive() else None
