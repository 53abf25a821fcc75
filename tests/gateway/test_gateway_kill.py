"""The gateway as a process of its own, killed under load. The judge is the load generator's fsynced list."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
CONNECTIONS = 20


class Server:
    """benchmarks/_ingest_gateway.py in a folder; the same folder again is the same hub again."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(BENCHMARKS / "_ingest_gateway.py"), str(folder), str(CONNECTIONS), "5"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ports = self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def finish(self) -> Any:
        """Stop it gracefully; what it says of its log."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None
        said = self._line()
        self._process.communicate(timeout=30)
        return said


@pytest.fixture
def load(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_every_acknowledged_message_survives_kill_9_exactly_once(
    tmp_path: Path, load: list[subprocess.Popen[str]]
) -> None:
    (tmp_path / "acked").touch()
    server = Server(tmp_path)
    options = ["--devices", f"{tmp_path}/devices.json", "--port", str(server.ports["plain_port"]), "--for", "12"]
    options += ["--connections", str(CONNECTIONS), "--rate", "3000", "--acked", f"{tmp_path}/acked"]
    load.append(
        subprocess.Popen([sys.executable, str(BENCHMARKS / "ingest.py"), *options], stdout=subprocess.PIPE, text=True)
    )
    try:
        for _ in range(3):
            with pytest.raises(subprocess.TimeoutExpired):
                load[0].wait(2)  # let it work for a while
            server.kill()
            server = Server(tmp_path)
        output, _ = load[0].communicate(timeout=120)
        result = json.loads(output)
        judged = server.finish()
    except BaseException:
        server.kill()
        raise
    assert result["reconnects"] >= CONNECTIONS
    assert result["resent"] > 0
    assert result["unacknowledged"] == 0
    assert judged["acked"] == result["acked"] == result["sent"] > 1000
    assert (judged["missing"], judged["twice"]) == (0, 0)
    assert judged["stored"] == result["sent"]
