"""A hub of two gateway workers, run by `headrace up` and handled from outside: over MQTT, REST and its documents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
from chain_parts import headrace

from headrace import assembly
from headrace.assembly.hub_info import hub_info
from headrace.core import runstate
from headrace.core.config import Project, load_project
from headrace.devices.connection_string import parse
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import DESIRED_FILTER, METHODS_FILTER, Identity, mail_filter, user_name

WORKERS = {"gateway": "gateway-0", "gateway:2": "gateway-2"}
"""Part, and what it is called in the presence of its devices."""
SETTINGS = """[project]
name = "two"

[gateway]
workers = 2
mqtt_port = 0
https_port = 0
plain_mqtt_port = 0

[broker]
port = 0

[warehouse]
enabled = false

[web]
port = 0
"""
API = {"api-version": "2021-04-12"}
TIMEOUT_S = 30.0
TURNS_MAX = 60


class Hub:
    """The running hub. `state` of another process than the one that asks is read from the documents."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "headrace.toml").write_text(SETTINGS)
        self.folder = folder
        self.strings: dict[str, str] = {}

    @property
    def project(self) -> Project:
        return load_project(str(self.folder), environ={})

    def headrace(self, *arguments: str) -> Any:
        done = headrace(*arguments, project=self.folder)
        assert done.returncode == 0, done.stderr
        return done

    def up(self) -> None:
        self.headrace("up", "--detach", "--ready-timeout", "120")
        self.info = json.loads(self.headrace("hub", "info", "--json").stdout)

    def state(self, part: str) -> runstate.PartState | None:
        found = runstate.read(self.project, part)
        return found if found is not None and found.state == "ready" else None

    async def register(self, *devices: str) -> None:
        async with self.platform() as platform:
            self.strings |= await platform.device_strings(devices, [""] * len(devices))

    @asynccontextmanager
    async def platform(self) -> AsyncIterator[assembly.Platform]:
        made = assembly.Platform(self.project)
        try:
            yield made
        finally:
            await made.close()

    async def presence(self, *devices: str) -> dict[str, tuple[bool, str]]:
        """(connected, the worker it came to or went from) of each device that ever came."""
        async with self.platform() as platform:
            found = [await platform.docs.get("presence", device) for device in devices]
        return {each.id: (each.body["connected"], each.body["worker"]) for each in found if each is not None}

    async def info_of_running(self) -> dict[str, Any]:
        async with self.platform() as platform:
            return await hub_info(platform)

    async def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A request of the hub's owner, on a connection of its own: either worker may get it."""
        host, key = self.info["host"], self.info["policies"]["iothubowner"]["primaryKey"]
        token = sas.build(host, key, expires_s=int(time.time()) + 600, policy="iothubowner")
        trust = ssl.create_default_context(cafile=self.info["caFile"])
        content = None if body is None else json.dumps(body)
        async with httpx.AsyncClient(verify=trust, timeout=TIMEOUT_S) as client:
            return await client.request(
                verb,
                f"https://{host}:{self.info['httpsPort']}/{path}",
                params=API,
                headers={"Authorization": token, **headers},
                content=content,
            )


class Device:
    """One connection of a device. `heard` are (topic, body) of what the hub sent it."""

    def __init__(self, hub: Hub, id: str, mqtt: aiomqtt.Client) -> None:
        self.id = id
        self._hub, self._mqtt = hub, mqtt
        self.heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def listen(self) -> None:
        """Until the connection ends. Methods are answered at once with what was asked."""
        try:
            async for message in self._mqtt.messages:
                topic, body = str(message.topic), bytes(message.payload)  # type: ignore[arg-type]
                if topic.startswith("$iothub/methods/POST/"):
                    answer = topic.replace("POST", "res", 1).split("/")
                    await self._mqtt.publish(f"$iothub/methods/res/200/{answer[-1]}", body)
                self.heard.put_nowait((topic, body))
        except aiomqtt.MqttError:
            pass
        finally:
            self.closed.set()

    async def subscribe(self) -> None:
        for each in (METHODS_FILTER, DESIRED_FILTER, mail_filter(Identity(self.id))):
            await self._mqtt.subscribe(each, qos=1)

    async def hears(self, start: str) -> bytes:
        """The body of the next message to a topic that begins like this."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                topic, body = await self.heard.get()
                if topic.startswith(start):
                    return body

    async def where(self) -> str:
        """The worker that it is connected to."""
        await eventually(lambda: self._is_present())
        return (await self._hub.presence(self.id))[self.id][1]

    async def _is_present(self) -> bool:
        return (await self._hub.presence(self.id)).get(self.id, (False, ""))[0]


@asynccontextmanager
async def connected(hub: Hub, id: str, *, clean: bool = False) -> AsyncIterator[Device]:
    """A device on a connection to whichever worker the system chooses. Without a clean start its session stays."""
    fields, identity = parse(hub.strings[id]), Identity(id)
    token = sas.build(f"{fields.hostname}/{identity.path}", fields.key, expires_s=int(time.time()) + 600)
    client = aiomqtt.Client(
        "127.0.0.1",
        hub.info["plainMqttPort"],
        identifier=id,
        username=user_name(fields.hostname, identity),
        password=token,
        protocol=aiomqtt.ProtocolVersion.V311,
        clean_session=clean,
        timeout=TIMEOUT_S,
    )
    with contextlib.suppress(aiomqtt.MqttError):  # the hub may have closed it by then
        async with client:
            device = Device(hub, id, client)
            listening = asyncio.create_task(device.listen())
            try:
                yield device
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


@asynccontextmanager
async def connected_at(hub: Hub, id: str, worker: str) -> AsyncIterator[Device]:
    """A device at a certain worker: it connects until the system chooses that one."""
    for _ in range(TURNS_MAX):
        async with connected(hub, id) as device:
            if await device.where() == worker:
                yield device
                return
        await eventually(lambda: _away(hub, id))
    raise AssertionError(f"{TURNS_MAX} connections, none of them to {worker}")


async def _away(hub: Hub, id: str) -> bool:
    return not (await hub.presence(id))[id][0]


async def eventually(question: Callable[[], Awaitable[Any]], *, timeout_s: float = TIMEOUT_S) -> Any:
    """The first true answer; other processes do the work, so all there is to do is ask again."""
    end = time.monotonic() + timeout_s
    while not (answer := await question()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s; the last answer was {answer!r}"
        await asyncio.sleep(0.05)
    return answer
