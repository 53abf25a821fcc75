"""The official device SDK, unmodified, and paho-mqtt 1.6 against our gateway over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core.clock import TICKS_PER_S, SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds, message_event_id
from headrace.core.observe.metrics import Metrics
from headrace.devices import connection_string
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name

HERE = Path(__file__).parent
HUB = "localhost"
WRONG_KEY = base64.b64encode(b"x" * 32).decode()

pytestmark = pytest.mark.interop


class Stand:
    """A gateway with one device `press-07`, made through the registry's own commands."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.log, self.docs = MemoryEventLog(self.clock), MemoryDocStore(self.clock)
        self.authority = DevelopmentAuthority(folder, self.clock)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.gateway = Gateway(
            GatewayConfig(mqtt_port=0, https_port=-1, plain_mqtt_port=0),
            log=self.log,
            docs=self.docs,
            directory=self.directory,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(os.urandom(16)),
        )
        self.key = ""

    async def start(self) -> None:
        made = await DeviceCommands(self.docs, self.clock, os.urandom).create("press-07")
        self.key = made.primary_key
        await self.directory.open()
        self.ports = await self.gateway.start()

    async def rows(self) -> list[dict[str, Any]]:
        found = await self.log.read_merged("telemetry", (), rows_max=10_000, wait_s=0)
        return sorted(found.batch.to_pylist(), key=lambda row: row["_offset"])


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp_path)
    await made.start()
    yield made
    await made.gateway.stop()


async def ran(python: Path, script: str, *arguments: object) -> tuple[int, str]:
    """(exit code, standard output) of a client script. What the client's own threads log is on standard error, shown when
    a test fails, and no part of the answer."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(HERE / script),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, complaints = await asyncio.wait_for(process.communicate(), 90)
    except TimeoutError:
        process.kill()
        raise
    print(complaints.decode())
    return process.returncode or 0, output.decode()


async def test_the_official_sdk_sends_and_every_message_is_stored_once(azure_python: Path, stand: Stand) -> None:
    text = connection_string.build(HUB, "press-07", stand.key)
    code, output = await ran(azure_python, "azure_device.py", text, stand.authority.ca_path, stand.ports.mqtt_port, 50)
    assert (code, output.strip().splitlines()[-1:]) == (0, ["done"]), output
    rows = await stand.rows()
    assert len(rows) == 51
    sent = {row["_event_id"]: row for row in rows[:50]}
    for number in range(50):
        row = sent[message_event_id("press-07", None, f"id/{number}+ä")]
        assert json.loads(row["_body"]) == {"temperature": number}
        assert (row["_device"], row["_type"], row["_content_type"]) == ("press-07", "reading", "application/json")
        properties = json.loads(row["_properties"])
        assert properties["system"]["message-id"] == f"id/{number}+ä"
        assert properties["system"]["content-encoding"] == "utf-8"
        assert properties["application"] == {"type": "reading", "a key": f"v&={number}"}
    assert rows[50]["_body"] == b"again"


async def test_the_official_sdk_is_told_that_its_key_is_wrong(azure_python: Path, stand: Stand) -> None:
    text = connection_string.build(HUB, "press-07", WRONG_KEY)
    code, output = await ran(azure_python, "azure_device.py", text, stand.authority.ca_path, stand.ports.mqtt_port, 1)
    assert (code, output) == (3, "credential error\n")


async def test_the_sessions_of_the_official_sdk_are_remembered(azure_python: Path, stand: Stand) -> None:
    text = connection_string.build(HUB, "press-07", stand.key)
    await ran(azure_python, "azure_device.py", text, stand.authority.ca_path, stand.ports.mqtt_port, 1)
    document = await stand.docs.get("sessions", "press-07")
    assert document is not None
    assert document.body == {"filters": {"$iothub/methods/POST/#": 1}}


@pytest.fixture
def paho(azure_python: Path, stand: Stand) -> Callable[[str, int], Any]:
    def run(key: str, count: int) -> Any:
        identity = Identity("press-07")
        expires_s = stand.clock.now() // TICKS_PER_S + 600
        token = sas.build(f"{HUB}/{identity.path}", key, expires_s=expires_s)
        name = user_name(HUB, identity)
        return ran(azure_python, "paho_device.py", stand.ports.plain_port, name, "press-07", token, count)

    return run


async def test_paho_sends_over_plain_mqtt(paho: Callable[[str, int], Any], stand: Stand) -> None:
    code, output = await paho(stand.key, 50)
    assert (code, output.strip()) == (0, "granted [(1, 128)]"), output
    rows = await stand.rows()
    assert [row["_body"] for row in rows] == [f"body {n}".encode() for n in range(50)] + [b"\x00\xff binary", b"last"]
    assert [row["_event_id"] for row in rows[:50]] == [message_event_id("press-07", None, f"p{n}") for n in range(50)]


async def test_paho_with_a_wrong_key_is_refused(paho: Callable[[str, int], Any]) -> None:
    assert await paho(WRONG_KEY, 1) == (3, "refused [5]\n")
