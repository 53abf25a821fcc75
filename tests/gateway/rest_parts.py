"""The service API without sockets: real services over documents in memory, called through ASGI."""

from __future__ import annotations

import random
from typing import Any

import httpx

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.commands import DeviceCommands
from headrace.devices.hub_query import HubQueries
from headrace.devices.hub_view import Views
from headrace.devices.mailbox import Mailbox
from headrace.devices.policies import PolicyStore
from headrace.devices.queries import DeviceDirectory, DeviceQueries
from headrace.devices.twins import TwinService
from headrace.docstore.memory import MemoryDocStore
from headrace.gateway.admission import Admission
from headrace.gateway.methods import DeviceNotOnline, MethodTimeout
from headrace.gateway.refusals import Refusals
from headrace.gateway.rest.app import RestDoor
from headrace.gateway.rest.services import HubServices
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity


class Callee:
    """Devices that answer methods: what they were asked, and what they say."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def invoke(
        self, identity: Identity, name: str, payload: Any, *, response_timeout_s: float, connect_timeout_s: float
    ) -> tuple[int, Any]:
        self.asked.append((identity, name, payload, response_timeout_s, connect_timeout_s))
        if name == "offline":
            raise DeviceNotOnline(f"{identity.client_id!r} is not connected", hint="wait")
        if name == "slow":
            raise MethodTimeout(f"{identity.client_id!r} did not answer", hint="wait")
        return 207, {"echo": payload}


class Service:
    """A client of the service API. `key_name` and `key` sign what `call` sends."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.docs = MemoryDocStore(self.clock)
        rng = random.Random(3)
        self.policies = PolicyStore(self.docs, self.clock, rng.randbytes)
        self.directory = DeviceDirectory(self.docs, clock=self.clock)
        self.commands = DeviceCommands(self.docs, self.clock, rng.randbytes)
        self.queries = DeviceQueries(self.docs)
        self.twins = TwinService(self.docs, self.clock, random_bytes=rng.randbytes)
        self.mailbox = Mailbox(self.docs, self.clock, EventIds(b"test"))
        self.callee = Callee()
        self.refusals = Refusals(Metrics(), self.clock)
        self.door = RestDoor(
            HubServices(
                commands=self.commands,
                queries=self.queries,
                views=Views(self.docs),
                hub_queries=HubQueries(self.docs),
                twins=self.twins,
                mailbox=self.mailbox,
                methods=self.callee,
            ),
            admission=Admission({"hub"}, self.directory, self.clock, leeway_s=0),
            refusals=self.refusals,
            clock=self.clock,
            random_bytes=rng.randbytes,
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.door), base_url="https://hub")

    async def open(self) -> None:
        await self.policies.ensure()
        await self.directory.open()

    async def close(self) -> None:
        await self.http.aclose()

    def token(self, key: str, resource: str = "hub", policy: str | None = None, ttl_s: int = 60) -> str:
        return sas.build(resource, key, expires_s=self.clock.now() // TICKS_PER_S + ttl_s, policy=policy)

    async def call(
        self,
        method: str,
        path: str,
        json: Any = ...,
        *,
        policy: str = "iothubowner",
        match: str | None = None,
        **more: Any,
    ) -> httpx.Response:
        """A request with a valid token of `policy` and, if given, an If-Match header."""
        headers = {"authorization": self.token((await self.policies.get(policy)).primary_key, policy=policy)}
        if match is not None:
            headers["if-match"] = match
        headers |= more.pop("headers", {})
        if json is not ...:
            more["json"] = json
        return await self.http.request(method, path, headers=headers, params={"api-version": "2021-04-12"}, **more)

    async def made(self, id: str, **changes: Any) -> dict[str, Any]:
        """A new device, as the API shows it."""
        answer = await self.call("PUT", f"/devices/{id}", {"deviceId": id, **changes})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def error_of(answer: httpx.Response) -> tuple[int, str]:
    """Status and name of an error, after looking that its parts agree and that it says something."""
    name = answer.headers["iothub-errorcode"]
    head, _, text = answer.json()["Message"].partition(";")
    assert head == f"ErrorCode:{name}"
    assert text.strip()
    return answer.status_code, name
