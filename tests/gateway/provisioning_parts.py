"""What tests of the provisioning doors share: a device that registers over a wire, and a client of the service API."""

from __future__ import annotations

import random
from typing import Any

import httpx
from gateway_parts import Parts, Wire
from hub_client import Got, arrives, messages, turn
from provisioned import KEY, OTHER_KEY

from headrace.core.clock import TICKS_PER_S
from headrace.core.config import ProvisioningConfig
from headrace.devices.certificates import ClientCertificate, TrustedAuthorities
from headrace.devices.enrolments import Attestation, Enrolled, Enrolment, EnrolmentCommands, Kind
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.devices.queries import DeviceQueries
from headrace.gateway.mqtt import MqttConnection
from headrace.gateway.provisioning_part import ProvisioningPart
from headrace.gateway.rest.exchange import Answer
from headrace.wire.iothub import sas
from headrace.wire.iothub.provisioning import FILTER
from headrace.wire.mqtt import codec

NAMES = frozenset({"hub", "127.0.0.1"})


class Place(Parts):
    """The gateway's inner parts with a provisioning service beside them."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        draw = random.Random(5).randbytes
        self.identities = ServiceIdentities(self.docs, draw)
        self.enrolments = EnrolmentCommands(self.docs, self.clock, draw)
        self.queries = DeviceQueries(self.docs)
        self.part = ProvisioningPart(
            ProvisioningConfig(**config),
            host="hub",
            names=NAMES,
            docs=self.docs,
            clock=self.clock,
            twins=self.twins,
            authorities=TrustedAuthorities(self.docs, self.clock),
            refusals=self.door.refusals,
            random_bytes=draw,
            leeway_s=0,
        )
        self.door.provisioning = self.part.mqtt
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.part.around(_elsewhere)), base_url="https://hub"
        )

    async def open(self) -> None:
        await self.part.open()
        self.service = await self.identities.ensure()
        self.scope = self.service.id_scope

    async def close(self) -> None:
        await self.http.aclose()
        await self.part.close()

    async def enrol(self, id: str, kind: Kind = "individual", **fields: Any) -> Enrolled:
        fields.setdefault("attestation", Attestation(primary_key=KEY, secondary_key=OTHER_KEY))
        return await self.enrolments.put(kind, Enrolment(id=id, **fields))

    def proof(self, id: str, key: str = KEY, *, policy: str | None = None) -> str:
        expires_s = self.clock.now() // TICKS_PER_S + 60
        return sas.build(f"{self.scope}/registrations/{id}", key, expires_s=expires_s, policy=policy)

    def knock(self, id: str, **changes: Any) -> bytes:
        """A CONNECT as azure-iot-device sends it."""
        name = f"{self.scope}/registrations/{id}/api-version=2019-03-31&ClientVersion=py%2F1"
        return codec.encode_connect(
            codec.Connect(id, name, self.proof(id).encode(), True, 60, None)._replace(**changes)
        )

    async def entered(self, id: str, *, qos: int = 1, **changes: Any) -> tuple[Any, Wire]:
        """A device that is in and listens for answers; returns what takes its bytes."""
        connection, wire = self.dial()
        connection.data_received(self.knock(id, **changes))
        await turn(lambda: len(wire.written) >= 4)
        assert wire.written == b"\x20\x02\x00\x00"
        wire.written = b""
        taker = wire.protocol
        taker.data_received(codec.encode_subscribe(1, [(FILTER, qos)]))
        await turn(lambda: wire.written == codec.encode_suback(1, [min(qos, 1)]))
        wire.written = b""
        return taker, wire

    async def refused_with(self, knock: bytes) -> int:
        """The return code of a CONNECT that is turned away."""
        connection, wire = self.dial()
        connection.data_received(knock)
        await turn(lambda: wire.closed)
        assert wire.written[:3] == b"\x20\x02\x00"
        return wire.written[3]

    async def call(self, method: str, path: str, json: Any = ..., *, match: str = "", **more: Any) -> httpx.Response:
        """The service API, as `provisioningserviceowner`."""
        expires_s = self.clock.now() // TICKS_PER_S + 60
        token = sas.build("hub", self.service.primary_key, expires_s=expires_s, policy=self.service.policy)
        headers = {"authorization": token, **more.pop("headers", {})}
        if match:
            headers["if-match"] = match
        if json is not ...:
            more["json"] = json
        return await self.http.request(method, path, headers=headers, params={"api-version": "2021-10-01"}, **more)


def ask(taker: Any, topic: str, body: bytes = b" ", packet_id: int = 7) -> None:
    taker.data_received(codec.encode_publish(topic.encode(), body, packet_id=packet_id))


async def answer_to(taker: Any, wire: Wire, topic: str, body: bytes = b" ") -> Got:
    ask(taker, topic, body)
    (got,) = await arrives(wire)
    return got


async def _elsewhere(scope: Any, receive: Any, send: Any) -> None:
    await Answer(418).send(send)


__all__ = ["ClientCertificate", "MqttConnection", "Place", "answer_to", "ask", "messages"]
