"""A whole project under `headrace up`, handled from outside: made, started, killed, and judged by what was acknowledged.

The judge is a list of acknowledged message ids that the generator fsynced, never the log: what stands on that list must be
in the lake and in the entity table exactly once. benchmarks/load.py and chaos.py share this.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from deltalake import DeltaTable

from headrace import assembly
from headrace.core.config import Project, load_project
from headrace.core.identity import message_event_id

ROOT = Path(__file__).resolve().parents[2]
HEADRACE = [sys.executable, "-m", "headrace"]
LOAD = [sys.executable, str(ROOT / "benchmarks" / "load.py")]
POSTGRES = "postgres"
"""The part that is no process of ours: PostgreSQL's postmaster."""


class WholeProject:
    """A factory project in a folder of its own on free ports, plain MQTT on loopback switched on.

    `warehouse_url` (libpq's form) makes it use that PostgreSQL instead of one of its own.
    """

    def __init__(self, folder: Path, *, warehouse_url: str = "") -> None:
        self.folder = folder
        made = subprocess.run(
            [*HEADRACE, "init", str(folder), "--blueprint", "factory"], capture_output=True, text=True
        )
        if made.returncode:
            raise RuntimeError(f"headrace init: {made.stderr}")
        # The ports must stay the same while the gateway is killed and comes back, so "any free port" would not do.
        self.mqtt_port, https_port, self.plain_port, self.web_port = free_ports(4)
        path = folder / "headrace.toml"
        text = path.read_text()
        for pattern, line in (
            (r"^mqtt_port = .*$", f"mqtt_port = {self.mqtt_port}\nplain_mqtt_port = {self.plain_port}"),
            (r"^https_port = .*$", f"https_port = {https_port}"),
            (r"^port = .*$", f"port = {self.web_port}"),
        ):
            text, found = re.subn(pattern, line, text, flags=re.MULTILINE)
            if found != 1:
                raise RuntimeError(f"the blueprint's headrace.toml has {found} lines {pattern}, not one")
        if warehouse_url:
            text += f"\n[warehouse]\nurl = {json.dumps(warehouse_url)}\n"
        path.write_text(text)

    @property
    def project(self) -> Project:
        return load_project(str(self.folder), environ={})

    @property
    def ca(self) -> Path:
        return self.folder / ".headrace" / "certificates" / "ca.pem"

    @property
    def console(self) -> str:
        return f"http://127.0.0.1:{self.web_port}"

    def headrace(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> str:
        """The standard output of a command on this project."""
        environ = {**os.environ, "HEADRACE_PROJECT": str(self.folder)}
        done = subprocess.run([*HEADRACE, *arguments], env=environ, capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode != 0:
            raise RuntimeError(f"headrace {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def up(self) -> None:
        self.headrace("up", "--detach", "--ready-timeout", "150")

    def down(self) -> None:
        self.headrace("down", check=False)

    @contextlib.contextmanager
    def running(self, *, keep: bool = False) -> Iterator[WholeProject]:
        """Up, and down at the end. Unless `keep`, the database goes too: as root it does not lie in the project's folder."""
        try:
            self.up()
            yield self
        finally:
            self.down()
            server = assembly.own_server(self.project)
            if server is not None and not keep and not server.status().pid:
                shutil.rmtree(server.status().data.parent, ignore_errors=True)

    def register(self, count: int, prefix: str = "fac1-cnc") -> Path:
        """Register devices; returns the file {device: connection string} that the generator reads."""
        path = self.folder / "devices.json"
        self.headrace("device", "create-many", "--prefix", prefix, "--count", str(count), "--out", str(path))
        return path

    def parts(self) -> dict[str, int]:
        """Pids of what lives: supervisor, parts and PostgreSQL's postmaster, asked of the operating system."""
        found: dict[str, int] = {}
        for path in (self.folder / ".headrace" / "run").glob("*.json"):
            with contextlib.suppress(ValueError, FileNotFoundError, psutil.NoSuchProcess):
                state = json.loads(path.read_bytes())
                process = psutil.Process(state["pid"])
                if abs(process.create_time() - state["born"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                    found[state["part"]] = state["pid"]
        server = assembly.own_server(self.project)
        if server is not None and (pid := server.status().pid):
            found[POSTGRES] = pid
        return found

    def kill(self, part: str) -> list[int]:
        """SIGKILL one process; `all` is the supervisor, every part and PostgreSQL with its children, at once."""
        parts = self.parts()
        victims = list(parts.values()) if part == "all" else [parts[part]] if part in parts else []
        family: list[psutil.Process] = []
        for pid in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                family += [process, *(process.children(recursive=True) if part == "all" else [])]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        return [process.pid for process in family]

    def generator(
        self,
        devices: Path,
        acknowledged: Path,
        *,
        rate: int,
        connections: int,
        seconds: float,
        size: int = 200,
        tls: bool = False,
    ) -> subprocess.Popen[str]:
        """Start the load generator; one JSON line comes out when it has an acknowledgement for everything it sent."""
        command = [*LOAD, "--generate", str(devices), "--acked", str(acknowledged), "--size", str(size)]
        command += ["--rate", str(rate), "--connections", str(connections), "--seconds", str(seconds)]
        command += ["--port", str(self.mqtt_port if tls else self.plain_port)]
        command += ["--tls-ca", str(self.ca)] if tls else []
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def judge(self, acknowledged: Path, *, wait_s: float = 120.0) -> dict[str, Any]:
        """Compare the acknowledged ids with what lake and warehouse hold, and ask the ledger once all has drained."""
        wanted = {event_id(line) for line in acknowledged.read_text().split()}
        ledger = json.loads(
            self.headrace("ledger", "--json", "--wait", str(wait_s), check=False, timeout_s=wait_s + 120)
        )
        table = DeltaTable(str(self.folder / ".headrace" / "lake" / "raw" / "telemetry"))
        lake = Counter(table.to_pyarrow_table(columns=["_event_id"])["_event_id"].to_pylist())
        with psycopg.connect(assembly.warehouse_url(self.project)) as connection:
            entities = Counter(row[0] for row in connection.execute("SELECT event_id FROM machine_telemetry"))
        return {
            "acknowledged": len(wanted),
            "lake_missing": len(wanted - lake.keys()),
            "lake_twice": sum(count > 1 for count in lake.values()),
            "entities_missing": len(wanted - entities.keys()),
            "entities_twice": sum(count > 1 for count in entities.values()),
            "stored_but_not_acknowledged": len(lake.keys() - wanted),
            "balanced": ledger["balanced"],
            "pending": ledger["pending"],
            "gaps": [stage for stage in ledger["stages"] if stage["gap"]],
            "set_aside": sum(
                sum(stage["set_aside"].values()) for stage in ledger["stages"] if stage["stage"] != "ingest"
            ),
        }


def exactly_once(verdict: dict[str, Any]) -> bool:
    """Whether a verdict says that everything acknowledged stands everywhere once, and the books balance."""
    zero = ("lake_missing", "lake_twice", "entities_missing", "entities_twice", "pending")
    return verdict["acknowledged"] > 0 and verdict["balanced"] and not any(verdict[name] for name in zero)


def event_id(message: str) -> str:
    """The event id of a message of the generator, `RUN-DEVICE-NUMBER`."""
    return message_event_id(message.split("-", 1)[1].rsplit("-", 1)[0], None, message)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
