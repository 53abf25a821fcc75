"""The official service SDK (azure-iot-hub 2.7, its REST part), unmodified, against our gateway over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.policies import Policy, PolicyStore, shared_connection_string
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.sqlite import SqliteDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.server import Gateway

SCRIPT = Path(__file__).parent / "azure_hub.py"
HUB = "localhost"
TIMEOUT_S = 120

pytestmark = pytest.mark.interop


class Stand:
    """A gateway over documents on disk, with the policies that every hub has."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.docs = SqliteDocStore(folder / "documents.db", self.clock)
        self.authority = DevelopmentAuthority(folder / "keys", self.clock)
        self.policies = PolicyStore(self.docs, self.clock, os.urandom)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.gateway = Gateway(
            GatewayConfig(mqtt_port=0, https_port=0),
            log=MemoryEventLog(self.clock),
            docs=self.docs,
            directory=self.directory,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(os.urandom(16)),
        )

    async def start(self) -> None:
        self.known = {policy.name: policy for policy in await self.policies.ensure()}
        await self.directory.open()
        self.ports = await self.gateway.start()
        self.following = asyncio.create_task(self.directory.run())

    async def stop(self) -> None:
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.gateway.stop()
        await self.docs.close()

    async def run(self, python: Path, what: str, policy: Policy) -> dict[str, Any]:
        """What the script saw, called with a connection string of `policy`."""
        text = shared_connection_string(HUB, self.ports.https_port, policy)
        process = await asyncio.create_subprocess_exec(
            str(python),
            str(SCRIPT),
            what,
            text,
            str(self.ports.mqtt_port),
            env={**os.environ, "REQUESTS_CA_BUNDLE": str(self.authority.ca_path)},
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


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_the_official_service_sdk_manages_the_registry(azure_hub_python: Path, stand: Stand) -> None:
    seen = await stand.run(azure_hub_python, "registry", stand.known["registryReadWrite"])
    assert seen == {
        "made": ["press", "enabled", 44],
        "same": True,
        "changed": ["disabled", "worn", True],
        "keys_kept": True,
        "twice": "HttpOperationError: Operation returned an invalid status code 'Conflict'",
        "stale": "HttpOperationError: Operation returned an invalid status code 'Precondition Failed'",
        "missing": "HttpOperationError: Operation returned an invalid status code 'Not Found'",
        "odd": "a+b#c?%25;'$",
        "types": ["selfSigned", True, "certificateAuthority"],
        "edge": [True, True],
        "module": ["m", "you", ["m"]],
        "no_module": "HttpOperationError: Operation returned an invalid status code 'Not Found'",
        "listed": ["a+b#c?%25;'$", "ca", "cert", "edge", "leaf", "press"],
        "some": 2,
        "bulk": [True, False, ["DeviceAlreadyExists", "DeviceAlreadyExists"]],
        "statistics": [26, 25, 1],
        "gone": "HttpOperationError: Operation returned an invalid status code 'Not Found'",
    }
    kept = [device.id for device in stand.directory]
    assert "cert" not in kept
    assert len(kept) == 24


async def test_the_official_service_sdk_changes_and_queries_twins(azure_hub_python: Path, stand: Stand) -> None:
    seen = await stand.run(azure_hub_python, "twins", stand.known["iothubowner"])
    assert seen == {
        "first": [{"floor": 1}, 1, 2, "enabled"],
        "second": [{"name": "one"}, 1],
        "stale": "HttpOperationError: Operation returned an invalid status code 'Precondition Failed'",
        "replaced": [{"only": True}, {"a": {"b": 1}}],
        "module": [{"kind": "vision"}, "m"],
        "pages": [["d0", "d1"], ["d2", "d3"], ["d4"]],
        "floor": ["d0", "d2", "d4"],
        "bad": "HttpOperationError: Operation returned an invalid status code 'Bad Request'",
        "missing": "HttpOperationError: Operation returned an invalid status code 'Not Found'",
    }


async def test_the_official_service_and_device_sdks_meet(azure_hub_python: Path, stand: Stand) -> None:
    seen = await stand.run(azure_hub_python, "methods", stand.known["iothubowner"])
    assert seen == {
        "offline": "HttpOperationError: Operation returned an invalid status code 'Not Found'",
        "device": [201, {"of": "device", "method": "a b/c", "payload": {"x": [1]}}],
        "module": [201, {"of": "module", "method": "look", "payload": ""}],
        "pushed": [True, [3]],
        "reported": 21,
        "connected": ["Connected"],
        "count": 1,
    }


async def test_a_policy_without_the_right_is_refused(azure_hub_python: Path, stand: Stand) -> None:
    said = "HttpOperationError: Operation returned an invalid status code 'Unauthorized'"
    assert await stand.run(azure_hub_python, "refused", stand.known["service"]) == {"said": said}
