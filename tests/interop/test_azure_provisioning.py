"""The official provisioning client, unmodified: it registers, connects to the hub it is assigned to, and sends."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pki import issue
from test_azure_device import WRONG_KEY, ran

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.enrolments import Attestation, Enrolment, EnrolmentCommands
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway
from headrace.wire.iothub.provisioning import derive_key

pytestmark = pytest.mark.interop

HOST = "127.0.0.1"
ROOT = issue("factory root", ca=True)
LINE = issue("line 4", ROOT, ca=True)
OWN = issue("own-leaf")


class Plant:
    """A hub with its provisioning service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.log, self.docs = MemoryEventLog(self.clock), MemoryDocStore(self.clock)
        self.authority = DevelopmentAuthority(folder / "authority", self.clock)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.enrolments = EnrolmentCommands(self.docs, self.clock, os.urandom)
        self.gateway = Gateway(
            GatewayConfig(mqtt_port=0, https_port=0),
            log=self.log,
            docs=self.docs,
            directory=self.directory,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(os.urandom(16)),
        )

    async def start(self) -> None:
        await self.directory.open()
        self.ports = await self.gateway.start()
        self.scope = (await ServiceIdentities(self.docs, os.urandom).ensure()).id_scope

    def asked(self, registration: str, *, ws: bool = False, **credential: Any) -> str:
        fixed = {"ca": self.authority.ca_path.read_text(), "host": HOST, "scope": self.scope, "ws": ws}
        ports = {"mqtt": self.ports.mqtt_port, "https": self.ports.https_port}
        return json.dumps({"registration": registration, "payload": {"rack": 4}, **fixed, **ports, **credential})

    async def register(self, python: Path, registration: str, **credential: Any) -> tuple[dict[str, Any], Any]:
        """What the registration said, and the desired properties that the device then read."""
        code, output = await ran(python, "azure_provisioning.py", self.asked(registration, **credential))
        assert code == 0, output
        said, desired = (json.loads(line) for line in output.splitlines())
        return said, desired

    async def bodies(self) -> list[str]:
        found = await self.log.read_merged("telemetry", (), rows_max=1000, wait_s=0)
        return sorted(row["_body"].decode() for row in found.batch.to_pylist())


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    made = Plant(tmp_path)
    await made.start()
    yield made
    await made.gateway.stop()


@pytest.mark.parametrize("ws", [False, True], ids=["tcp", "ws"])
async def test_the_official_client_registers_with_a_key_and_sends(azure_python: Path, plant: Plant, ws: bool) -> None:
    wanted = Enrolment(id="press-7", device_id="dev-7", desired={"rate": 5}, payload={"welcome": 1})
    made = await plant.enrolments.put("individual", wanted)
    said, desired = await plant.register(azure_python, "press-7", key=made.enrolment.attestation.primary_key, ws=ws)
    assert said == {
        "status": "assigned",
        "hub": HOST,
        "device": "dev-7",
        "substatus": "initialAssignment",
        "payload": '{"welcome": 1}',  # the SDK hands JSON on as text
    }
    assert desired["rate"] == 5
    assert await plant.bodies() == ["from dev-7"]


async def test_members_of_a_group_register_with_derived_keys_at_once(azure_python: Path, plant: Plant) -> None:
    group = (await plant.enrolments.put("group", Enrolment(id="line"))).enrolment.attestation
    keys = {"press-1": group.primary_key, "press-2": group.secondary_key}
    found = await asyncio.gather(
        *(plant.register(azure_python, id, key=derive_key(key, id)) for id, key in keys.items())
    )
    assert [said["device"] for said, _ in found] == ["press-1", "press-2"]
    assert await plant.bodies() == ["from press-1", "from press-2"]


@pytest.mark.parametrize("kind", ["leaf", "group"])
async def test_the_official_client_registers_with_a_certificate(azure_python: Path, plant: Plant, kind: str) -> None:
    if kind == "leaf":
        leaf, id = OWN, "own-leaf"
        await plant.enrolments.put(
            "individual", Enrolment(id=id, attestation=Attestation(type="x509", certificates=(OWN.pem,)))
        )
    else:
        leaf, id = issue("press-9", LINE), "press-9"
        await plant.enrolments.put(
            "group", Enrolment(id="ca", attestation=Attestation(type="x509", signing=(ROOT.pem,)))
        )
    said, _ = await plant.register(azure_python, id, certificate=str(leaf.save(plant.folder)))
    assert (said["status"], said["device"]) == ("assigned", id)
    assert await plant.bodies() == [f"from {id}"]


async def test_the_official_client_is_told_that_it_may_not_register(azure_python: Path, plant: Plant) -> None:
    group = (await plant.enrolments.put("group", Enrolment(id="line"))).enrolment.attestation
    await plant.enrolments.put("individual", Enrolment(id="off", enabled=False, attestation=group))
    wrong = [
        plant.asked("press-1", key=WRONG_KEY),
        plant.asked("press-1", key=group.primary_key),
        plant.asked("off", key=group.primary_key),
        plant.asked("press-9", certificate=str(issue("press-9", LINE).save(plant.folder))),
    ]
    for code, output in await asyncio.gather(*(ran(azure_python, "azure_provisioning.py", each) for each in wrong)):
        assert (code, output) == (3, "credential error\n")
    assert await plant.bodies() == []


async def test_the_official_service_client_manages_enrolments(
    azure_provisioning_python: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await ServiceIdentities(plant.docs, os.urandom).get()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(plant.authority.ca_path))
    text = f"HostName={HOST}:{plant.ports.https_port};SharedAccessKeyName={service.policy};SharedAccessKey={service.primary_key}"
    code, output = await ran(azure_provisioning_python, "azure_provisioning_service.py", text)
    assert code == 0, output
    said = json.loads(output)
    assert said["made"] == ["press-7", "dev-7", "enabled", {"line": 4}]
    assert (said["hidden"], said["changed"], said["key"]) == (None, "disabled", True)
    assert (said["group"], said["bulk"]) == ("symmetricKey", True)
    assert said["pages"] == [["b-0", "b-1"], ["b-2", "b-3"], ["b-4", "press-7"]]
    assert "412" in said["stale"]
    assert "404" in said["unregistered"]
    assert "404" in said["gone"]
