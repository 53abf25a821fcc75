"""The gateway as a whole: its doors, its ingress, its tasks.

Start opens every port before it serves any; stop closes the doors first, then makes durable and acknowledges what came in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import NamedTuple, Protocol

import structlog

from headrace.core.clock import Clock
from headrace.core.config import GatewayConfig, LimitsConfig, ProvisioningConfig
from headrace.core.errors import Unavailable, UserError
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.certificates import TrustedAuthorities
from headrace.devices.commands import DeviceCommands
from headrace.devices.hub_query import HubQueries
from headrace.devices.hub_view import Views
from headrace.devices.mailbox import Mailbox
from headrace.devices.model import Device, Module
from headrace.devices.queries import DeviceQueries
from headrace.devices.routes import Routing
from headrace.devices.twins import TwinService
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog
from headrace.gateway.admission import Admission
from headrace.gateway.admission import Directory as Admitting
from headrace.gateway.bus import Bus
from headrace.gateway.dead_letters import DeadLetters
from headrace.gateway.egress import Egress
from headrace.gateway.http import HttpDoor
from headrace.gateway.https import Asgi, HttpsServer, Routes
from headrace.gateway.ingress import Ingress
from headrace.gateway.limits import MESSAGE_OVERHEAD_BYTES, Limits
from headrace.gateway.limits_throttled import Throttled
from headrace.gateway.listen import BACKLOG, is_loopback, open_port, port_of
from headrace.gateway.methods import Methods
from headrace.gateway.mqtt import MqttDoor
from headrace.gateway.presence import WORKER, Presence
from headrace.gateway.provisioning_part import ProvisioningPart
from headrace.gateway.proxy import ProxyDoor, TrustedProxies
from headrace.gateway.refusals import Refusals
from headrace.gateway.rest.app import RestDoor
from headrace.gateway.rest.services import HubServices
from headrace.gateway.routing import Router
from headrace.gateway.routing_events import HubEvents
from headrace.gateway.sessions import Sessions
from headrace.gateway.streams import DeviceStreams
from headrace.gateway.tls import Make, TlsServer, server_context
from headrace.gateway.websocket import WebSocketLayer
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub.sas import host_name

STOP_TIMEOUT_S = 10.0
RENEW_S = 12 * 3600.0

log = structlog.get_logger()


class Directory(Admitting, Protocol):
    """What the gateway needs of devices.queries.DeviceDirectory; somebody else keeps it current."""

    on_change: list[Callable[[str, Device | None], None]]
    on_module_change: list[Callable[[str, Module | None], None]]


class Authority(Protocol):
    """What the gateway needs of devices.authority.DevelopmentAuthority."""

    def server_pair(self, hostnames: Iterable[str] = ()) -> tuple[bytes, bytes]: ...


class Listening(NamedTuple):
    """Where devices connect; -1 is off."""

    mqtt_port: int
    https_port: int
    plain_port: int


class Gateway:
    """Built idle; `start` and `stop` once each.

    `directory` must have been opened, and `ids` seeded with random bytes of this process. `streams` are open to devices
    besides `telemetry`. `rest` answers the HTTPS requests that are not a device's telemetry: the service API, unless given.
    `ports` are what the first of several workers got: this one takes exactly those. `bus` reaches the project's other gateway
    processes, and `shared` says that they serve the same devices.
    `routing`, `limits` and `provisioning` are the project's. Raises UserError for settings that would be unsafe.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        log: EventLog,
        docs: DocStore,
        directory: Directory,
        authority: Authority,
        clock: Clock,
        metrics: Metrics,
        ids: EventIds,
        rng: random.Random | None = None,
        streams: Iterable[str] = (),
        rest: Asgi | None = None,
        ports: Listening | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        bus: Bus | None = None,
        shared: bool = False,
        routing: Routing | None = None,
        limits: LimitsConfig | None = None,
        provisioning: ProvisioningConfig | None = None,
    ) -> None:
        _check(config)
        self._config = config
        self._directory = directory
        self._authority = authority
        self._names = _names(config)
        self._writer = DocumentWriter(docs, clock)
        self.bus = bus or Bus()
        self.presence = Presence(docs, self._writer, clock, worker=self.bus.name or WORKER, shared=shared)
        self._sessions = Sessions(docs, self._writer, shared=shared)
        self.twins = TwinService(docs, clock, random_bytes=random_bytes)
        self.mailbox = Mailbox(docs, clock, ids, bury=DeadLetters(log).bury)
        self.methods = Methods(self.bus, random_bytes=random_bytes)
        refusals = Refusals(metrics, clock, self._writer)
        self.throttled = Throttled(metrics, clock, writer=self._writer, worker=self.bus.name or WORKER)
        self.limits = Limits(limits or LimitsConfig(), clock, self.throttled, messages_per_s=config.events_per_s_max)
        routing = routing or Routing({})
        self._docs = docs
        self._hub_events = HubEvents(
            routing,
            log,
            clock=clock,
            ids=ids,
            metrics=metrics,
            hub_name=routing.hub_name or config.hostname or config.host,
            first=(self.bus.name or WORKER) == WORKER,
        )
        self.twins.on_change.append(self._hub_events.twin_changed)
        self.presence.on_arrival.append(self._hub_events.arrived)
        self._clock = clock
        self._known_ports = ports
        self._refusals = refusals
        self._authorities = TrustedAuthorities(docs, clock)
        admission = self.admission = Admission(
            self._names, directory, clock, leeway_s=config.token_leeway_s, authorities=self._authorities
        )
        self.ingress = Ingress(
            log,
            clock=clock,
            rng=rng or random.Random(ids.take()),
            ids=ids,
            metrics=metrics,
            limit=self.limits.telemetry,
            interval_s=config.commit_interval_ms / 1000,
            batch_rows_max=config.batch_rows_max,
            streams=DeviceStreams(streams),
            refusals=refusals,
            router=Router(routing, clock=clock, metrics=metrics, twins=self.twins, bytes_max=config.message_bytes_max),
        )
        self.door = MqttDoor(
            admission=admission,
            ingress=self.ingress,
            sessions=self._sessions,
            presence=self.presence,
            egress=Egress(
                twins=self.twins,
                mailbox=self.mailbox,
                methods=self.methods,
                bus=self.bus,
                clock=clock,
                throttle=self.limits.ask,
            ),
            limits=self.limits,
            refusals=refusals,
            clock=clock,
            metrics=metrics,
            message_bytes_max=config.message_bytes_max,
            connections_max=config.connections_max,
        )
        self._provisioning = ProvisioningPart(
            provisioning or ProvisioningConfig(),
            host=config.hostname or config.host,
            names=self._names,
            docs=docs,
            clock=clock,
            twins=self.twins,
            authorities=self._authorities,
            refusals=refusals,
            random_bytes=random_bytes,
            leeway_s=config.token_leeway_s,
        )
        self.door.provisioning = self._provisioning.mqtt
        self._http = HttpDoor(
            admission=admission,
            ingress=self.ingress,
            refusals=refusals,
            limits=self.limits,
            clock=clock,
            message_bytes_max=config.message_bytes_max,
        )
        self._servers: list[asyncio.Server] = []
        self._https = HttpsServer(
            Routes(self._http, self._provisioning.around(rest or self._service_api(docs, clock, random_bytes))),
            self._websocket,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._failure = ""

    async def start(self) -> Listening:
        """Open all ports and serve. A port that cannot be had is another one, and that is logged; known `ports` raise
        UserError instead. Raises Unavailable when documents cannot be read."""
        ports = self._open_ports()
        try:
            await self.presence.open(alive=self.bus.peers())
            await self._sessions.open()
            await asyncio.to_thread(self.ingress.warm)
            await self._authorities.refresh()
            await self._provisioning.open()
            await self._refusals.open(self._docs)
            await self.throttled.open(self._docs)
            pair = await asyncio.to_thread(self._authority.server_pair, sorted(self._names))
            self._tasks = [
                self._spawn(self.ingress.run(), "ingress"),
                self._spawn(self._writer.run(), "documents"),
                self._spawn(self.door.sweep(), "sweep"),
                self._spawn(self._authorities.run(), "authorities"),
                self._spawn(self.door.egress.sweep_mail(), "mail"),
                self._spawn(self._refusals.run(), "refusals"),
                self._spawn(self.throttled.run(), "throttled"),
                self._spawn(self._hub_events.run(), "hub_events"),
            ]
            tls = TlsServer(server_context(*pair), on_failed=self._noter("tls"))
            self._tasks.append(self._spawn(self._renew(tls, pair), "certificate"))
            await self._join()
            await self._serve(ports, tls)
            self._directory.on_change.append(self.door.device_changed)
            self._directory.on_module_change.append(self.door.module_changed)
            self._directory.on_change.append(self._hub_events.device_changed)
            self._directory.on_module_change.append(self._hub_events.module_changed)
        except BaseException:
            for port in ports.values():
                port.close()
            await self.bus.stop()
            await self._end_tasks()
            raise
        listening = Listening(*(port_of(ports[name]) if name in ports else -1 for name in ("mqtt", "https", "plain")))
        log.info("gateway.listening", host=self._config.host, **listening._asdict())
        return listening

    async def stop(self) -> None:
        """Stop accepting, make durable and acknowledge what came in, close. Takes STOP_TIMEOUT_S at most."""
        for server in self._servers:
            server.close()
        self._https.stop()
        if ending := [task for task in self._tasks if task.get_name() == "https"]:
            await asyncio.wait(ending, timeout=STOP_TIMEOUT_S)
        for connection in list(self.door.connections):
            connection.hold("stopping")
        self.ingress.close()
        waiting = [task for task in self._tasks if task.get_name() == "ingress"]
        await asyncio.wait(waiting, timeout=STOP_TIMEOUT_S)
        if self.ingress.pending_rows:
            log.error("gateway.stopped_early", unacknowledged=self.ingress.pending_rows)
        await self._provisioning.close()
        await self.door.close()
        if self.door.device_changed in self._directory.on_change:
            self._directory.on_change.remove(self.door.device_changed)
            self._directory.on_module_change.remove(self.door.module_changed)
            self._directory.on_change.remove(self._hub_events.device_changed)
            self._directory.on_module_change.remove(self._hub_events.module_changed)
        await self.bus.stop()
        await self._end_tasks()
        self._refusals.write()
        self.throttled.write()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hub_events.flush(), STOP_TIMEOUT_S)
        with contextlib.suppress(Unavailable, TimeoutError):
            await asyncio.wait_for(self._writer.flush(), STOP_TIMEOUT_S)
        log.info("gateway.stopped")

    def _service_api(self, docs: DocStore, clock: Clock, random_bytes: Callable[[int], bytes]) -> RestDoor:
        services = HubServices(
            commands=DeviceCommands(docs, clock, random_bytes),
            queries=DeviceQueries(docs),
            views=Views(docs),
            hub_queries=HubQueries(docs),
            twins=self.twins,
            mailbox=self.mailbox,
            methods=self.methods,
        )
        return RestDoor(
            services,
            admission=self.admission,
            refusals=self._refusals,
            clock=clock,
            random_bytes=random_bytes,
            limits=self.limits,
        )

    def health(self) -> str:
        """What is wrong, for Health.register; empty when nothing is."""
        return self._failure or self.ingress.trouble

    async def _join(self) -> None:
        """Listen to the project's other processes. One worker can do without them."""
        try:
            await self.bus.start()
        except Unavailable as exc:
            if self._sessions.shared:
                raise
            log.warning("gateway.alone", error=exc.message)

    def _open_ports(self) -> dict[str, socket.socket]:
        config, known = self._config, self._known_ports
        wanted = {
            "mqtt": (known.mqtt_port if known else config.mqtt_port, "mqtt_port"),
            "https": (known.https_port if known else config.https_port, "https_port"),
            "plain": (known.plain_port if known else config.plain_mqtt_port, "plain_mqtt_port"),
        }
        ports: dict[str, socket.socket] = {}
        try:
            for name, (port, setting) in wanted.items():
                if port >= 0:
                    shared = config.workers > 1
                    ports[name] = open_port(config.host, port, setting=setting, shared=shared, exact=known is not None)
        except UserError:
            for opened in ports.values():
                opened.close()
            raise
        return ports

    async def _serve(self, ports: dict[str, socket.socket], tls: TlsServer) -> None:
        loop = asyncio.get_running_loop()
        around: Callable[[Make], Make] = tls.wrap
        if self._config.proxy_protocol:
            around = ProxyDoor(TrustedProxies(self._config.proxy_trusted), tls, on_failed=self._noter("proxy")).wrap
        speaks: dict[str, Make] = {"plain": self.door.protocol}
        if "mqtt" in ports:
            speaks["mqtt"] = around(self.door.protocol)
        if "https" in ports:
            self._tasks.append(self._spawn(self._https.run(), "https"))
            speaks["https"] = around(self._https.make)
        for name, port in ports.items():
            self._servers.append(await loop.create_server(speaks[name], sock=port, backlog=BACKLOG))

    async def _renew(self, tls: TlsServer, pair: tuple[bytes, bytes]) -> None:
        """A gateway that runs for a year shows a certificate that is still good: connections from then on get the new one."""
        while True:
            await self._clock.sleep(RENEW_S)
            try:
                found = await asyncio.to_thread(self._authority.server_pair, sorted(self._names))
            except Unavailable as exc:
                log.warning("certificate.not_renewed", code=exc.code, error=exc.message)
            else:
                if found != pair:
                    tls.context, pair = server_context(*found), found

    def _websocket(self) -> asyncio.Protocol:
        bytes_max = self._config.message_bytes_max + MESSAGE_OVERHEAD_BYTES
        return WebSocketLayer(self.door.protocol, message_bytes_max=bytes_max, on_failed=self._noter("websocket"))

    def _noter(self, kind: str) -> Callable[[str, str], None]:
        def note(reason: str, address: str) -> None:
            self._refusals.note(kind, detail=reason, address=address)

        return note

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that fails makes the gateway unhealthy; its supervisor restarts it."""
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._failure = f"{task.get_name()} failed: {type(exc).__name__}: {exc}"
            log.error("gateway.part_failed", part=task.get_name(), error=self._failure)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _check(config: GatewayConfig) -> None:
    host = config.host
    if config.plain_mqtt_port >= 0 and not is_loopback(host):
        raise UserError(
            f"plain MQTT on {host!r} would send keys over the network unprotected",
            hint="set [gateway] plain_mqtt_port = -1, or host = 127.0.0.1",
            code="gateway.plain",
        )
    if host in ("", "0.0.0.0", "::") and not config.hostname:
        raise UserError(
            "a gateway on all addresses needs the name that devices call it by",
            hint="set [gateway] hostname",
            code="gateway.hostname",
        )


def _names(config: GatewayConfig) -> frozenset[str]:
    """The names that devices may call this hub by, lower case; on loopback also localhost and its address."""
    names = {host_name(name.strip("[]")) for name in (config.hostname, config.host) if name}
    if is_loopback(config.host):
        names |= {"localhost", "127.0.0.1"}
    return frozenset(names - {"0.0.0.0", "::"})
