"""The official device SDK, unmodified, with certificates and over WebSockets against our gateway."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pki import Holder, issue
from test_azure_device import HUB, WRONG_KEY, ran

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices import connection_string
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.certificates import AuthorityCommands
from headrace.devices.commands import DeviceCommands
from headrace.devices.model import Draft
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway

pytestmark = pytest.mark.interop

OWN = issue("a press of ours")
ROOT = issue("factory root", ca=True)
LINE = issue("line 4", ROOT, ca=True)


class Plant:
    """A hub with a device for each kind of credential."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.log, self.docs = MemoryEventLog(self.clock), MemoryDocStore(self.clock)
        self.authority = DevelopmentAuthority(folder / "authority", self.clock)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
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
        commands = DeviceCommands(self.docs, self.clock, os.urandom)
        thumb = Draft(id="thumb", authentication="selfSigned", primary_thumbprint=OWN.sha256)
        made = await commands.create_many(
            [Draft(id="keyed"), thumb, Draft(id="issued", authentication="certificateAuthority")]
        )
        self.key = made[0].primary_key
        authorities = AuthorityCommands(self.docs, self.clock, os.urandom)
        added = await authorities.add("root", ROOT.pem)
        await authorities.verify("root", issue(added.code, ROOT).pem)
        await self.directory.open()
        self.ports = await self.gateway.start()

    def asked(self, how: str, device: str, **credential: Any) -> str:
        ports = {"mqtt": self.ports.mqtt_port, "https": self.ports.https_port}
        fixed = {"ca": self.authority.ca_path.read_text(), "host": HUB, "count": 20}
        return json.dumps({"how": how, "device": device, **ports, **fixed, **credential})

    def held(self, holder: Holder) -> dict[str, str]:
        return {"certificate": str(holder.save(self.folder))}

    async def bodies(self) -> list[str]:
        found = await self.log.read_merged("telemetry", (), rows_max=10_000, wait_s=0)
        return sorted(row["_body"].decode() for row in found.batch.to_pylist())


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    made = Plant(tmp_path)
    await made.start()
    yield made
    await made.gateway.stop()


@pytest.mark.parametrize("how", ["tcp", "ws"])
@pytest.mark.parametrize(("device", "holder"), [("thumb", OWN), ("issued", issue("issued", LINE))])
async def test_the_official_sdk_comes_in_with_a_certificate(
    azure_python: Path, plant: Plant, how: str, device: str, holder: Holder
) -> None:
    code, output = await ran(azure_python, "azure_x509_ws.py", plant.asked(how, device, **plant.held(holder)))
    assert (code, output.strip()) == (0, "done"), output
    assert await plant.bodies() == sorted(["again", *(f"{how} {number}" for number in range(20))])


async def test_the_official_sdk_sends_over_websockets_with_a_key(azure_python: Path, plant: Plant) -> None:
    text = connection_string.build(HUB, "keyed", plant.key)
    code, output = await ran(azure_python, "azure_x509_ws.py", plant.asked("ws", "keyed", connection_string=text))
    assert (code, output.strip()) == (0, "done"), output
    assert await plant.bodies() == sorted(["again", *(f"ws {number}" for number in range(20))])


async def test_the_official_sdk_is_told_that_its_certificate_or_key_is_wrong(azure_python: Path, plant: Plant) -> None:
    wrong = [
        plant.asked("tcp", "thumb", **plant.held(issue("a press of ours"))),
        plant.asked("tcp", "keyed", **plant.held(OWN)),
        plant.asked("ws", "issued", **plant.held(issue("issued"))),
        plant.asked("ws", "keyed", connection_string=connection_string.build(HUB, "keyed", WRONG_KEY)),
    ]
    for asked in wrong:
        assert await ran(azure_python, "azure_x509_ws.py", asked) == (3, "credential error\n")
