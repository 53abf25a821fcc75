"""A hub in one process: real gateway, log and documents in memory, devices as they come from the registry."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from headrace.core.clock import TICKS_PER_S, Clock, ManualClock, SystemClock
from headrace.core.config import GatewayConfig
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import EventBatch
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.mailbox import Mailbox
from headrace.devices.model import Device, Module
from headrace.devices.policies import Policy
from headrace.devices.twins import TwinService
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.contract import Appended, LogFull
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.admission import Admission
from headrace.gateway.bus import Bus
from headrace.gateway.client import DeviceClient, OnAck
from headrace.gateway.dead_letters import DeadLetters
from headrace.gateway.egress import Egress
from headrace.gateway.ingress import Ingress
from headrace.gateway.limits import RateLimit
from headrace.gateway.methods import Methods
from headrace.gateway.mqtt import MqttConnection, MqttDoor
from headrace.gateway.presence import WORKER, Presence
from headrace.gateway.refusals import Refusals
from headrace.gateway.server import Gateway, Listening
from headrace.gateway.sessions import Sessions
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

HOST = "127.0.0.1"
KEY = base64.b64encode(b"k" * 32).decode()
OTHER_KEY = base64.b64encode(b"o" * 32).decode()


def device(id: str, **changes: Any) -> Device:
    known: dict[str, Any] = {"primary_key": KEY, "secondary_key": OTHER_KEY, "generation_id": "g1", "created": 0}
    return Device(**{"id": id, "entity_id": f"entity-of-{id}", "site": "north", **known, **changes})


class Devices:
    """The directory, by hand."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices = {found.id: found for found in devices}
        self.made: list[Device] = []  # in the registry, and not heard of yet
        self.modules: dict[str, Module] = {}
        self.policies: dict[str, Policy] = {}
        self.on_change: list[Callable[[str, Device | None], None]] = []
        self.on_module_change: list[Callable[[str, Module | None], None]] = []

    def get(self, id: str) -> Device | None:
        return self._devices.get(id)

    def module(self, device: str, id: str) -> Module | None:
        return self.modules.get(f"{device}/{id}")

    def policy(self, name: str) -> Policy | None:
        return self.policies.get(name)

    async def refresh(self) -> None:
        self._devices |= {found.id: found for found in self.made}

    def change(self, id: str, changed: Device | None) -> None:
        if changed is None:
            self._devices.pop(id, None)
        else:
            self._devices[id] = changed
        for callback in self.on_change:
            callback(id, changed)


class BrokenLog(MemoryEventLog):
    """A log that refuses, or stores and then loses its answer, as often as it is told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.refusals = 0
        self.lost_answers = 0
        self.appends = 0

    async def append(self, stream: str, batch: EventBatch, *, producer: str = "", epoch: int = -1) -> Appended:
        self.appends += 1
        if self.refusals:
            self.refusals -= 1
            raise LogFull("the disk is full", hint="free some space")
        answer = await super().append(stream, batch, producer=producer, epoch=epoch)
        if self.lost_answers:
            self.lost_answers -= 1
            raise Unavailable("the answer got lost")
        return answer


async def rows_of(log: MemoryEventLog, stream: str = "telemetry") -> list[dict[str, Any]]:
    """All rows of a stream in merged order."""
    found = await log.read_merged(stream, (), rows_max=1_000_000, wait_s=0)
    return list(found.batch.to_pylist())


def sorted_by_offset(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["_partition"], row["_offset"]))


def properties_of(row: dict[str, Any]) -> Any:
    return json.loads(row["_properties"]) if row["_properties"] else None


class Wire(asyncio.Transport):
    """A transport that keeps what was written; `lost` is told to the protocol when the test says so."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.9", 4242)})
        self.written = b""
        self.closed = self.aborted = self.paused = False
        self.answered = asyncio.Event()

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.answered.set()
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol: Any = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Parts:
    """The gateway's inner parts without sockets, on a manual clock. With a `bus` it is one of the workers over `beside`'s
    documents."""

    def __init__(self, *, bus: Bus | None = None, beside: Parts | None = None, **limits: Any) -> None:
        self.clock = beside.clock if beside else ManualClock()
        self.devices = Devices([device("a"), device("b"), device("off", status="disabled"), device("p+#s")])
        self.log = BrokenLog(self.clock)
        self.docs = beside.docs if beside else MemoryDocStore(self.clock)
        self.metrics = Metrics()
        self.writer = DocumentWriter(self.docs, self.clock)
        self.bus = bus or Bus()
        self.sessions = Sessions(self.docs, self.writer, shared=bus is not None)
        self.presence = Presence(self.docs, self.writer, self.clock, worker=self.bus.name or WORKER)
        self.limit = RateLimit(limits.pop("per_s", 0), self.clock)
        self.ingress = Ingress(
            self.log,
            clock=self.clock,
            rng=random.Random(1),
            ids=EventIds(b"test"),
            metrics=self.metrics,
            limit=self.limit,
            interval_s=0.0,
            batch_rows_max=limits.pop("batch_rows_max", 100),
            pending_bytes_max=limits.pop("pending_bytes_max", 10_000_000),
        )
        self.twins = TwinService(self.docs, self.clock, random_bytes=random.Random(3).randbytes)
        self.mailbox = Mailbox(self.docs, self.clock, EventIds(b"mail"), bury=DeadLetters(self.log).bury)
        self.methods = Methods(self.bus, random_bytes=random.Random(4).randbytes)
        self.egress = Egress(
            twins=self.twins, mailbox=self.mailbox, methods=self.methods, bus=self.bus, clock=self.clock
        )
        self.door = MqttDoor(
            admission=Admission({HOST, "hub"}, self.devices, self.clock, leeway_s=300),
            ingress=self.ingress,
            sessions=self.sessions,
            presence=self.presence,
            egress=self.egress,
            refusals=Refusals(self.metrics, self.clock),
            clock=self.clock,
            metrics=self.metrics,
            message_bytes_max=limits.pop("message_bytes_max", 1000),
            connections_max=limits.pop("connections_max", 100),
        )
        self.devices.on_change.append(self.door.device_changed)
        self.devices.on_module_change.append(self.door.module_changed)
        assert not limits

    def token(self, id: str, key: str = KEY, ttl_s: int = 3600) -> bytes:
        return sas.build(f"hub/devices/{id}", key, expires_s=self.clock.now() // TICKS_PER_S + ttl_s).encode()

    def hello(self, id: str, **changes: Any) -> bytes:
        usual = codec.Connect(id, user_name("hub", Identity(id)), self.token(id), False, 60, None)
        return codec.encode_connect(usual._replace(**changes))

    def dial(self) -> tuple[MqttConnection, Wire]:
        connection, wire = self.door.protocol(), Wire()
        connection.connection_made(wire)
        return connection, wire

    def connected(self, id: str = "a", **changes: Any) -> tuple[MqttConnection, Wire]:
        """A device that is in; its CONNACK is taken off the wire."""
        connection, wire = self.dial()
        connection.data_received(self.hello(id, **changes))
        return self.let_in(connection, wire)

    async def connected_soon(self, id: str = "a", **changes: Any) -> tuple[MqttConnection, Wire]:
        """As `connected`, of a worker, which must read the session first."""
        connection, wire = self.dial()
        connection.data_received(self.hello(id, **changes))
        await asyncio.wait_for(wire.answered.wait(), 5)
        return self.let_in(connection, wire)

    @staticmethod
    def let_in(connection: MqttConnection, wire: Wire) -> tuple[MqttConnection, Wire]:
        assert wire.written[:2] == b"\x20\x02"
        assert wire.written[3] == 0
        wire.written = b""
        return connection, wire

    def refused(self) -> dict[str, float]:
        """What was refused, by reason."""
        (family,) = [found for found in self.metrics.registry.collect() if found.name == "headrace_gateway_refused"]
        return {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total")}

    async def settle(self) -> None:
        """Store what came in: run the ingress until nothing waits."""
        self.ingress.close()
        await asyncio.wait_for(self.ingress.run(), 5)


def publish(id: str, bag: str = "", body: bytes = b"{}", number: int = 1) -> bytes:
    return codec.encode_publish(f"devices/{id}/messages/events/{bag}".encode(), body, packet_id=number)


class Hub:
    """A gateway on free loopback ports."""

    def __init__(self, folder: Path, *, devices: int = 3, **config: Any) -> None:
        self.clock = SystemClock()
        self.log = BrokenLog(self.clock)
        self.docs = MemoryDocStore(self.clock)
        self.devices = Devices([device(f"dev-{index}") for index in range(devices)])
        self.authority = DevelopmentAuthority(folder, self.clock)
        self.metrics = Metrics()
        free: dict[str, Any] = {"mqtt_port": 0, "https_port": 0, "plain_mqtt_port": 0}
        self.config = GatewayConfig(**{**free, **config})
        self.gateway = self.made()
        self.ports = Listening(-1, -1, -1)
        self._clients: list[DeviceClient] = []

    def made(self, ports: Listening | None = None) -> Gateway:
        """Another gateway on the same log and documents; `ports` are those that a worker before it got."""
        return Gateway(
            self.config,
            log=self.log,
            docs=self.docs,
            directory=self.devices,
            authority=self.authority,
            clock=self.clock,
            metrics=Metrics(),
            ids=EventIds(random.randbytes(16)),
            ports=ports,
        )

    async def start(self) -> None:
        self.ports = await self.gateway.start()

    async def restart(self) -> None:
        """Another gateway on the same ports, log and documents."""
        await self.gateway.stop()
        self.config = GatewayConfig(
            mqtt_port=self.ports.mqtt_port, https_port=self.ports.https_port, plain_mqtt_port=self.ports.plain_port
        )
        self.gateway = self.made()
        await self.start()

    async def client(
        self,
        id: str,
        *,
        tls: bool = False,
        key: str = KEY,
        on_ack: OnAck | None = None,
        in_flight_max: int = 1000,
        connect: bool = True,
    ) -> DeviceClient:
        made = DeviceClient(
            HOST,
            self.ports.mqtt_port if tls else self.ports.plain_port,
            device=id,
            key=key,
            clock=self.clock,
            rng=random.Random(2),
            tls=self.authority.client_context() if tls else None,
            on_ack=on_ack,
            in_flight_max=in_flight_max,
        )
        self._clients.append(made)
        if connect:
            await made.connect()
        return made

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        await self.gateway.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    for _ in range(200_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")
