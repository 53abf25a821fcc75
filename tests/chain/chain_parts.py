"""A real project, handled from outside: made, fed over MQTT for a quarter of a minute, asked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from headrace import assembly
from headrace.blueprints.factory.feed import FactoryFeed
from headrace.blueprints.factory.simulator import Factory
from headrace.core import runstate
from headrace.core.clock import SystemClock
from headrace.core.config import Project, load_project
from headrace.core.errors import NotFound
from headrace.core.identity import message_event_id
from headrace.gateway.client import DeviceClient, Message, Sent

SEED = 24  # three of its twenty machines have between 40 and 70 seconds to live
MACHINES = 20
PERIOD_S = 0.25
FEED_S = 16.0
NEW_FIELD_AFTER_S = 8.0
MESSAGE_BYTES_MAX = 20_000
OTHERS = ("bad-payload", "bad-key", "bad-size", "bad-topic")  # devices for the tests of bad input
BROKEN_SQL = "SELECT machineId,\n    AVG(temperature AS warm\nINTO nowhere\nFROM telemetry TIMESTAMP BY ts\n"


class Chain:
    """The running project, handled from outside; `acknowledged` are the event ids that the gateway has confirmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: set[str] = set()
        self.strings: dict[str, str] = {}  # connection strings
        self.pids: dict[str, int] = {}  # of the parts, before the first message
        make(folder)

    @property
    def project(self) -> Project:
        return load_project(str(self.folder), environ={})

    def headrace(self, *arguments: str, project: Path | None = None) -> subprocess.CompletedProcess[str]:
        return headrace(*arguments, project=project or self.folder)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.headrace("status", "--json").stdout))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What the lake and the log say together; none of a stream that does not exist yet."""

        async def work() -> list[dict[str, Any]]:
            platform = assembly.Platform(self.project)
            try:
                found = await asyncio.to_thread(platform.history.run, sql)
                return list(found.to_pylist())
            except NotFound:
                return []
            finally:
                await platform.close()

        return asyncio.run(work())

    def address(self, part: str, name: str) -> str:
        state = runstate.read(self.project, part)
        assert state is not None, f"{part} does not run"
        return state.addresses[name]

    def metric(self, part: str, name: str, **labels: str) -> float:
        """A counter or gauge of a part; 0 where it was never counted."""
        text = get(self.address(part, "metrics"))
        wanted = "".join(f'(?=[^}}]*{key}="{value}")' for key, value in labels.items())
        found = re.findall(rf"^headrace_{name}(?:\{{{wanted}[^}}]*\}})? ([-+.e\d]+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def client(self, device: str, key: str = "") -> DeviceClient:
        """The connection of one of OTHERS, with `key` instead of its own."""
        text = self.strings[device]
        return connection(re.sub("SharedAccessKey=.*", f"SharedAccessKey={key}", text) if key else text, self.port)

    @property
    def port(self) -> int:
        return int(self.address("gateway", "mqtt-plain").rpartition(":")[2])

    def family(self) -> list[psutil.Process]:
        """Every process of the project, PostgreSQL's included."""
        found: dict[int, psutil.Process] = {}
        states = runstate.read_all(self.project)
        server = assembly.own_server(self.project)
        pids = [state.pid for state in states] + ([server.status().pid] if server is not None else [])
        for pid in filter(None, pids):
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(found.values())


def headrace(*arguments: str, project: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "HEADRACE_PROJECT": str(project), "COLUMNS": "200"}
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def eventually(question: Callable[[], Any], *, timeout_s: float = 30.0) -> Any:
    """The first true answer; other processes do the work, so all there is to do is ask again."""
    end = time.monotonic() + timeout_s
    while not (answer := question()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s; the last answer was {answer!r}"
        time.sleep(0.1)
    return answer


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def make(folder: Path) -> None:
    """The factory's project, on free ports, with small messages only and a second job that cannot work."""
    done = headrace("init", str(folder), "--blueprint", "factory", project=folder)
    assert done.returncode == 0, done.stderr
    mqtt, https, web = free_ports(3)
    path = folder / "headrace.toml"
    changed = re.sub(r"^https_port = .*$", f"https_port = {https}", path.read_text(), flags=re.MULTILINE)
    changed = re.sub(r"^port = .*$", f"port = {web}", changed, flags=re.MULTILINE)
    gateway = f"mqtt_port = {mqtt}\nplain_mqtt_port = 0\nmessage_bytes_max = {MESSAGE_BYTES_MAX}"
    changed = re.sub(r"^mqtt_port = .*$", gateway, changed, flags=re.MULTILINE)
    path.write_text(changed + '\n[jobs.broken]\nquery = "sql/broken.asaql"\n')
    (folder / "sql" / "broken.asaql").write_text(BROKEN_SQL)


def connection(text: str, port: int, acknowledged: set[str] | None = None) -> DeviceClient:
    device = re.findall(r"DeviceId=([^;]+)", text)[0]

    def heard(sent: Sequence[Sent]) -> None:
        if acknowledged is not None:
            ids = [one.message.message_id or "" for one in sent]
            acknowledged.update(message_event_id(device, None, each) for each in ids)

    return DeviceClient.from_connection_string(text, port=port, clock=SystemClock(), rng=random.Random(1), on_ack=heard)


async def feed(chain: Chain) -> None:
    """Twenty machines send, each over its own connection; plant time is the wall's."""
    clock = SystemClock()
    platform = assembly.Platform(chain.project)
    plant = FactoryFeed(
        Factory(SEED, machines=MACHINES, start_ticks=clock.now(), tick_s=PERIOD_S, new_field_after_s=NEW_FIELD_AFTER_S)
    )
    chain.strings = await platform.device_strings([*plant.devices, *OTHERS], [*plant.sites, *["fac1"] * len(OTHERS)])
    await platform.close()
    clients = [connection(chain.strings[device], chain.port, chain.acknowledged) for device in plant.devices]
    await asyncio.gather(*(client.connect() for client in clients))
    begun = clock.monotonic()
    for number in range(int(FEED_S / PERIOD_S)):
        await clock.sleep(max(0.0, begun + number * PERIOD_S - clock.monotonic()))
        for client, body in zip(clients, plant.step(), strict=True):
            await client.publish_many([Message(body, f"m{number}")], timeout_s=20)
    for client in clients:
        await client.drain(timeout_s=20)
    await asyncio.gather(*(client.close() for client in clients))
