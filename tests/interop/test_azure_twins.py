"""Twins, methods, cloud-to-device messages and modules with the official device SDK, unmodified."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from headrace.core.clock import SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.commands import DeviceCommands
from headrace.devices.mailbox import Message
from headrace.devices.model import ModuleDraft
from headrace.devices.queries import DeviceDirectory
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.methods import DeviceNotOnline, MethodTimeout
from headrace.gateway.server import Gateway, Listening
from headrace.wire.iothub.topics import Identity

HERE = Path(__file__).parent
PRESS = Identity("press-07")
MODULE = Identity("press-07", "vision")
WAIT_S = 60

pytestmark = pytest.mark.interop


class Stand:
    """A gateway with the device `press-07` and its module `vision`."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.log, self.docs = MemoryEventLog(self.clock), MemoryDocStore(self.clock)
        self.authority = DevelopmentAuthority(folder, self.clock)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.ports = Listening(0, -1, -1)
        self.keys: dict[Identity, str] = {}

    async def start(self) -> None:
        commands = DeviceCommands(self.docs, self.clock, os.urandom)
        self.keys[PRESS] = (await commands.create("press-07")).primary_key
        made = await commands.create_module(ModuleDraft(device="press-07", id="vision"))
        self.keys[MODULE] = made.module.primary_key
        await self.directory.open()
        await self.up()

    async def up(self) -> None:
        self.gateway = Gateway(
            GatewayConfig(mqtt_port=self.ports.mqtt_port, https_port=-1, plain_mqtt_port=-1),
            log=self.log,
            docs=self.docs,
            directory=self.directory,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(os.urandom(16)),
        )
        self.ports = await self.gateway.start()

    def connection_string(self, identity: Identity) -> str:
        module = f";ModuleId={identity.module}" if identity.module else ""
        return f"HostName=localhost;DeviceId={identity.device}{module};SharedAccessKey={self.keys[identity]}"

    async def listening(self, identity: Identity, count: int) -> None:
        """Wait until a client has subscribed to `count` things."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = self.gateway.door.by_client.get(identity.client_id)
                if found is not None and len(found.filters) >= count:
                    return
                await asyncio.sleep(0.02)


class Client:
    """The SDK in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._told: list[dict[str, Any]] = []

    def say(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def hears(self, kind: str) -> dict[str, Any]:
        """The next thing of a kind; others wait for their turn."""
        assert self._process.stdout is not None
        while True:
            for index, told in enumerate(self._told):
                if told["kind"] == kind:
                    return self._told.pop(index)
            line = await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)
            assert line, "the client ended"
            self._told.append(json.loads(line))

    async def hears_patch(self, version: int) -> dict[str, Any]:
        """The patch that leads to a version. After each connect the SDK makes one itself, of the twin that it then gets."""
        while (patch := (await self.hears("patch"))["patch"])["$version"] < version:
            pass
        return dict(patch)

    async def ask(self, kind: str, *command: Any) -> dict[str, Any]:
        self.say(*command)
        return await self.hears(kind)


Start: TypeAlias = Callable[[Identity], AbstractAsyncContextManager[Client]]


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp_path)
    await made.start()
    yield made
    await made.gateway.stop()


@pytest.fixture
def client(azure_python: Path, stand: Stand) -> Start:
    @asynccontextmanager
    async def started(identity: Identity) -> AsyncIterator[Client]:
        process = await asyncio.create_subprocess_exec(
            str(azure_python),
            str(HERE / "azure_twins.py"),
            stand.connection_string(identity),
            str(stand.authority.ca_path),
            str(stand.ports.mqtt_port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        try:
            await stand.listening(identity, 2 if identity.module else 3)
            yield Client(process)
            process.stdin.close()
            await asyncio.wait_for(process.wait(), 30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    return started


async def test_the_sdk_reads_reports_and_hears_of_changes(client: Start, stand: Stand) -> None:
    twins = stand.gateway.twins
    await twins.update(PRESS, {"tags": {"secret": 1}, "properties": {"desired": {"speed": 5}}})
    async with client(PRESS) as sdk:
        twin = (await sdk.ask("twin", "twin"))["twin"]
        assert twin == {"desired": {"speed": 5, "$version": 2}, "reported": {"$version": 1}}
        assert (await sdk.ask("reported", "report", {"speed": 5, "state": {"door": "shut"}}))["kind"] == "reported"
        assert (await twins.get(PRESS)).reported.values == {"speed": 5, "state": {"door": "shut"}}
        await twins.update(PRESS, {"properties": {"desired": {"speed": 6, "gone": None}}})
        assert await sdk.hears_patch(3) == {"speed": 6, "gone": None, "$version": 3}
        assert (await sdk.ask("error", "report", {"a.b": 1}))["name"] == "ClientError"
        assert (await sdk.ask("twin", "twin"))["twin"]["reported"]["$version"] == 2


async def test_the_sdk_answers_methods(client: Start, stand: Stand) -> None:
    methods = stand.gateway.methods
    with pytest.raises(DeviceNotOnline):
        await methods.invoke(PRESS, "stop", None)
    async with client(PRESS) as sdk:
        for payload in (None, {"now": True}, "text", [1, 2]):
            assert await methods.invoke(PRESS, "set speed/now", payload) == (207, {"heard": payload})
            assert await sdk.hears("method") == {"kind": "method", "name": "set speed/now", "payload": payload}
        with pytest.raises(MethodTimeout):
            await methods.invoke(PRESS, "silent", None, response_timeout_s=0.5)


async def test_the_sdk_receives_messages_and_acknowledges_them(client: Start, stand: Stand) -> None:
    mailbox = stand.gateway.mailbox
    system = {"message-id": "m/1", "content-type": "text/plain", "correlation-id": "c=1&2"}
    await mailbox.send("press-07", Message(system, {"iothub-ack": "full", "a key": "v=1&/%+ ä"}, b"before"))
    async with client(PRESS) as sdk:
        got = await sdk.hears("message")
        assert got == {
            "kind": "message",
            "body": "before",
            "id": "m/1",
            "type": "text/plain",
            "correlation": "c=1&2",
            "ack": "full",
            "properties": {"a key": "v=1&/%+ ä"},
        }
        for number in range(30):
            await mailbox.send("press-07", Message({}, {}, f"{number}".encode()))
        assert [(await sdk.hears("message"))["body"] for _ in range(30)] == [f"{number}" for number in range(30)]
        async with asyncio.timeout(WAIT_S):
            while await mailbox.pending("press-07"):  # noqa: ASYNC110  # its acknowledgements are under way
                await asyncio.sleep(0.02)
        (record,) = await mailbox.feedback()
        assert record.record["originalMessageId"] == "m/1"
        assert record.record["statusCode"] == "Success"


async def test_after_a_restart_of_the_hub_all_goes_on_without_subscribing_again(client: Start, stand: Stand) -> None:
    async with client(PRESS) as sdk:
        await sdk.ask("twin", "twin")
        await stand.gateway.stop()
        await stand.up()
        await stand.listening(PRESS, 4)
        assert await stand.gateway.methods.invoke(PRESS, "stop", 1) == (207, {"heard": 1})
        await stand.gateway.twins.update(PRESS, {"properties": {"desired": {"speed": 9}}})
        assert await sdk.hears_patch(2) == {"speed": 9, "$version": 2}
        await stand.gateway.mailbox.send("press-07", Message({}, {}, b"still there"))
        assert (await sdk.hears("message"))["body"] == "still there"
        assert (await sdk.ask("twin", "twin"))["twin"]["desired"] == {"speed": 9, "$version": 2}


async def test_a_change_while_the_sdk_was_away_reaches_it_after_it_reconnects(client: Start, stand: Stand) -> None:
    async with client(PRESS) as sdk:
        await sdk.ask("twin", "twin")
        await sdk.ask("reconnected", "reconnect")
        await stand.gateway.stop()
        await stand.gateway.twins.update(PRESS, {"properties": {"desired": {"speed": 7}}})
        await stand.up()
        assert await sdk.hears_patch(2) == {"speed": 7, "$version": 2}


async def test_a_module_has_its_own_twin_and_methods(client: Start, stand: Stand) -> None:
    async with client(MODULE) as sdk:
        await sdk.ask("reported", "report", {"model": "v2"})
        assert (await stand.gateway.twins.get(MODULE)).reported.values == {"model": "v2"}
        assert (await stand.gateway.twins.get(PRESS)).reported.values == {}
        await stand.gateway.twins.update(MODULE, {"properties": {"desired": {"rate": 2}}})
        assert await sdk.hears_patch(2) == {"rate": 2, "$version": 2}
        assert await stand.gateway.methods.invoke(MODULE, "look", None) == (207, {"heard": None})
        with pytest.raises(DeviceNotOnline):
            await stand.gateway.methods.invoke(PRESS, "look", None)
