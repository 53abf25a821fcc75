"""The official Node SDKs, unmodified, against our gateway over real sockets: device, service and provisioning."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.enrolments import Attestation, Enrolment, EnrolmentCommands
from headrace.devices.policies import OWNER, PolicyStore
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway

FOLDER = Path(__file__).parent / "node"
HUB = "localhost"
INSTALL_TIMEOUT_S = 300
TIMEOUT_S = 120

pytestmark = pytest.mark.interop


@pytest.fixture(scope="session")
def node() -> str:
    """The Node that has the SDKs of package-lock.json; the test is skipped with the reason when they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    lock, installed = FOLDER / "package-lock.json", FOLDER / "node_modules" / "installed.lock"
    if installed.exists() and installed.read_text() == lock.read_text():
        return node
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"the SDKs could not be installed within {INSTALL_TIMEOUT_S} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"the SDKs cannot be installed (npm ci): {last}")
    installed.write_text(lock.read_text())
    return node


class Stand:
    """A gateway by the name `localhost`, with the policies that every hub has."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.docs, self.log = MemoryDocStore(self.clock), MemoryEventLog(self.clock)
        self.authority = DevelopmentAuthority(folder / "keys", self.clock)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.commands = DeviceCommands(self.docs, self.clock, os.urandom)
        self.gateway = Gateway(
            GatewayConfig(hostname=HUB, mqtt_port=0, https_port=0),
            log=self.log,
            docs=self.docs,
            directory=self.directory,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(os.urandom(16)),
        )

    async def start(self) -> None:
        known = {policy.name: policy for policy in await PolicyStore(self.docs, self.clock, os.urandom).ensure()}
        self.service = f"HostName={HUB};SharedAccessKeyName={OWNER};SharedAccessKey={known[OWNER].primary_key}"
        await self.directory.open()
        self.ports = await self.gateway.start()
        self.following = asyncio.create_task(self.directory.run())

    async def stop(self) -> None:
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.gateway.stop()

    async def run(self, node: str, what: str, **plan: str) -> dict[str, Any]:
        """What the script saw."""
        ports = {"HUB_MQTT_PORT": str(self.ports.mqtt_port), "HUB_HTTPS_PORT": str(self.ports.https_port)}
        process = await asyncio.create_subprocess_exec(
            node,
            "--require",
            str(FOLDER / "redirect.js"),
            str(FOLDER / "sdk.js"),
            what,
            json.dumps({"hub": HUB, **plan}),
            env={**os.environ, **ports, "NODE_EXTRA_CA_CERTS": str(self.authority.ca_path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, complaints = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        except TimeoutError:
            process.kill()
            raise
        print(complaints.decode())
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(output)
        return found

    async def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        starts, ends = await self.log.bounds("telemetry")
        for partition, (at, end) in enumerate(zip(starts, ends, strict=True)):
            if at < end:
                found += (await self.log.read("telemetry", partition, at, rows_max=1000, wait_s=0)).to_pylist()
        return found


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("transport", ["tcp", "ws"])
async def test_the_node_sdks_of_device_and_service_meet(node: str, stand: Stand, transport: str) -> None:
    seen = await stand.run(node, "device", service=stand.service, transport=transport)
    stale = seen.pop("stale")
    assert stale[0] == "InvalidEtagError"
    assert stale[2] == 412
    assert seen == {
        "fresh": [1, 1],
        "reported": {"speed": 3},
        "desired": [5, 2],
        "methods": [
            {"status": 202, "payload": {"did": "reboot"}},
            {"status": 202, "payload": {"did": "reboot"}},
            [{"in": [1]}, None],
        ],
        "mail": [{"open": True}, "c-1", "note"],
        "offline": ["Error", "Not found", 404],
    }
    (event,) = await stand.events()
    assert json.loads(event["_body"]) == {"temperature": 21.5}
    assert event["_content_type"] == "application/json"
    assert json.loads(event["_properties"])["application"]["level"] == "a b/ü&=?"


async def test_the_node_service_sdk_manages_the_registry(node: str, stand: Stand) -> None:
    seen = await stand.run(node, "registry", service=stand.service)
    assert seen["twice"][0] == "DeviceAlreadyExistsError"
    assert seen["missing"][0] == "DeviceNotFoundError"
    del seen["twice"], seen["missing"]
    assert seen == {
        "added": [True, 0],
        "changed": ["enabled", "disabled", "worn"],
        "module": ["vision", 1],
        "pages": [["n0", "n2"], ["n3"]],
        "bad": ["ArgumentError"],
        "left": [True, ["n1"]],
        "statistics": [1, 0, 1],
    }


async def test_the_node_device_sdk_is_told_that_its_key_is_wrong(node: str, stand: Stand) -> None:
    await stand.commands.create("node-2")
    wrong = base64.b64encode(os.urandom(32)).decode()
    seen = await stand.run(node, "refused", device="node-2", key=wrong)
    assert seen["said"][0] == "UnauthorizedError"


async def test_the_node_provisioning_sdk_registers_a_device_that_then_connects(node: str, stand: Stand) -> None:
    key = base64.b64encode(os.urandom(64)).decode()
    enrolments = EnrolmentCommands(stand.docs, stand.clock, os.urandom)
    attestation = Attestation(primary_key=key, secondary_key=key)
    await enrolments.put("individual", Enrolment(id="reg-1", attestation=attestation, device_id="press-9"))
    service = await ServiceIdentities(stand.docs, os.urandom).ensure()
    seen = await stand.run(node, "provisioning", scope=service.id_scope, registrationId="reg-1", key=key)
    assert seen == {"status": "assigned", "device": "press-9", "hub": HUB}
    (event,) = await stand.events()
    assert event["_device"] == "press-9"
