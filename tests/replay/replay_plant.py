"""A small project of real processes that files are replayed into."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.assembly import Platform
from headrace.cli.replay_memory import Memory
from headrace.connectors.files import FileRows
from headrace.core.config import load_project

TOML = """
[project]
name = "replayed"
[gateway]
mqtt_port = 0
https_port = 0
[web]
port = 0
[warehouse]
enabled = false
[streams.laboratory]
devices = true
[streams.cellar]
"""


class Plant:
    """A project folder and the command line, each command a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "headrace.toml").write_text(TOML)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "headrace", *arguments, "--project", str(self.folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command printed, both streams; its exit code is checked."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        return out + err

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What `headrace query` would print, without the start of a process."""
        return asyncio.run(self._rows(sql))

    async def _rows(self, sql: str) -> list[dict[str, Any]]:
        platform = Platform(load_project(str(self.folder)))
        try:
            return (await asyncio.to_thread(platform.history.run, sql)).to_pylist()
        finally:
            await platform.close()

    def pid(self, part: str) -> int:
        return int(json.loads((self.folder / ".headrace" / "run" / f"{part}.json").read_text())["pid"])

    def kill(self, part: str) -> None:
        os.kill(self.pid(part), signal.SIGKILL)

    def remembered(self, file: Path) -> int:
        """How many rows of a file a replay has noted as acknowledged."""
        folder = self.folder / ".headrace" / "replay"
        return Memory(folder, FileRows(file), "telemetry").done


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)  # another process is at work; there is nothing to wait on
