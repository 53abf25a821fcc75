"""The gateway as a whole: its doors, its ingress, its tasks.

Start opens every port before it serves any; stop closes the doors first, then makes durable and acknowledges what came in.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import NamedTuple, Protocol

import structlog
import uvicorn

from headrace.core.clock import Clock
from headrace.core.config import GatewayConfig
from headrace.core.errors import Unavailable, UserError
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.devices.model import Device
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog
from headrace.gateway.admission import Admission
from headrace.gateway.admission import Directory as Admitting
from headrace.gateway.http import HttpDoor
from headrace.gateway.ingress import Ingress
from headrace.gateway.limits import RateLimit
from headrace.gateway.listen import BACKLOG, is_loopback, open_port, port_of
from headrace.gateway.mqtt import MqttDoor
from headrace.gateway.presence import Presence
from headrace.gateway.refusals import Refusals
from headrace.gateway.sessions import Sessions
from headrace.gateway.streams import DeviceStreams
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub.sas import host_name

STOP_TIMEOUT_S = 10.0
HANDSHAKE_TIMEOUT_S = 20.0
HTTP_REQUESTS_MAX = 1000  # each may hold a message in memory; above it uvicorn answers 503

log = structlog.get_logger()


class Directory(Admitting, Protocol):
    """What the gateway needs of devices.queries.DeviceDirectory; somebody else keeps it current."""

    on_change: list[Callable[[str, Device | None], None]]


class Authority(Protocol):
    """What the gateway needs of devices.authority.DevelopmentAuthority."""

    def server_context(self, hostnames: Iterable[str] = ()) -> ssl.SSLContext: ...


class Listening(NamedTuple):
    """Where devices connect; -1 is off."""

    mqtt_port: int
    https_port: int
    plain_port: int


class _HttpServer(uvicorn.Server):
    """uvicorn without its hold on signals: the process belongs to whoever runs the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Gateway:
    """Built idle; `start` and `stop` once each.

    `directory` must have been opened, and `ids` seeded with random bytes of this process. `streams` are open to devices
    besides `telemetry`. Raises UserError for settings that would be unsafe.
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
    ) -> None:
        _check(config)
        self._config = config
        self._directory = directory
        self._authority = authority
        self._names = _names(config)
        self._writer = DocumentWriter(docs, clock)
        self._presence = Presence(docs, self._writer, clock)
        self._sessions = Sessions(docs, self._writer)
        refusals = Refusals(metrics, clock)
        limit = RateLimit(config.events_per_s_max, clock)
        admission = Admission(self._names, directory, clock, leeway_s=config.token_leeway_s)
        self.ingress = Ingress(
            log,
            clock=clock,
            rng=rng or random.Random(ids.take()),
            ids=ids,
            metrics=metrics,
            limit=limit,
            interval_s=config.commit_interval_ms / 1000,
            batch_rows_max=config.batch_rows_max,
            streams=DeviceStreams(streams),
            refusals=refusals,
        )
        self.door = MqttDoor(
            admission=admission,
            ingress=self.ingress,
            sessions=self._sessions,
            presence=self._presence,
            refusals=refusals,
            clock=clock,
            metrics=metrics,
            message_bytes_max=config.message_bytes_max,
            connections_max=config.connections_max,
        )
        self._http = HttpDoor(
            admission=admission,
            ingress=self.ingress,
            refusals=refusals,
            limit=limit,
            clock=clock,
            message_bytes_max=config.message_bytes_max,
        )
        self._servers: list[asyncio.Server] = []
        self._https: tuple[_HttpServer, asyncio.Task[None]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failure = ""

    async def start(self) -> Listening:
        """Open all ports and serve. Raises UserError for a port in use, Unavailable when documents cannot be read."""
        ports = self._open_ports()
        try:
            await self._presence.open()
            await self._sessions.open()
            await asyncio.to_thread(self.ingress.warm)
            context = await asyncio.to_thread(self._authority.server_context, sorted(self._names))
            self._tasks = [
                self._spawn(self.ingress.run(), "ingress"),
                self._spawn(self._writer.run(), "documents"),
                self._spawn(self.door.sweep(), "sweep"),
            ]
            await self._serve(ports, context)
            self._directory.on_change.append(self.door.device_changed)
        except BaseException:
            for port in ports.values():
                port.close()
            await self._end_tasks()
            raise
        listening = Listening(*(port_of(ports[name]) if name in ports else -1 for name in ("mqtt", "https", "plain")))
        log.info("gateway.listening", host=self._config.host, **listening._asdict())
        return listening

    async def stop(self) -> None:
        """Stop accepting, make durable and acknowledge what came in, close. Takes STOP_TIMEOUT_S at most."""
        for server in self._servers:
            server.close()
        await self._stop_https()
        for connection in list(self.door.connections):
            connection.hold("stopping")
        self.ingress.close()
        waiting = [task for task in self._tasks if task.get_name() == "ingress"]
        await asyncio.wait(waiting, timeout=STOP_TIMEOUT_S)
        if self.ingress.pending_rows:
            log.error("gateway.stopped_early", unacknowledged=self.ingress.pending_rows)
        await self.door.close()
        if self.door.device_changed in self._directory.on_change:
            self._directory.on_change.remove(self.door.device_changed)
        await self._end_tasks()
        with contextlib.suppress(Unavailable, TimeoutError):
            await asyncio.wait_for(self._writer.flush(), STOP_TIMEOUT_S)
        log.info("gateway.stopped")

    def health(self) -> str:
        """What is wrong, for Health.register; empty when nothing is."""
        return self._failure or self.ingress.trouble

    def _open_ports(self) -> dict[str, socket.socket]:
        wanted = {
            "mqtt": (self._config.mqtt_port, "mqtt_port"),
            "https": (self._config.https_port, "https_port"),
            "plain": (self._config.plain_mqtt_port, "plain_mqtt_port"),
        }
        ports: dict[str, socket.socket] = {}
        try:
            for name, (port, setting) in wanted.items():
                if port >= 0:
                    ports[name] = open_port(self._config.host, port, setting=setting)
        except UserError:
            for opened in ports.values():
                opened.close()
            raise
        return ports

    async def _serve(self, ports: dict[str, socket.socket], context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        if "mqtt" in ports:
            self._servers.append(
                await loop.create_server(
                    self.door.protocol,
                    sock=ports["mqtt"],
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=2.0,
                    backlog=BACKLOG,
                )
            )
        if "plain" in ports:
            self._servers.append(await loop.create_server(self.door.protocol, sock=ports["plain"], backlog=BACKLOG))
        if "https" in ports:
            await self._serve_https(ports["https"], context)

    async def _serve_https(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        config = uvicorn.Config(
            self._http,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=60,
            limit_concurrency=HTTP_REQUESTS_MAX,
            backlog=BACKLOG,
        )
        config.load()
        config.ssl = context
        server = _HttpServer(config)
        self._https = (server, self._spawn(server.serve(sockets=[listener]), "https"))
        while not server.started:
            if self._https[1].done():
                self._https[1].result()
            await asyncio.sleep(0.005)  # uvicorn has no other way to tell

    async def _stop_https(self) -> None:
        if self._https is not None:
            server, task = self._https
            server.should_exit = True
            await asyncio.wait([task], timeout=STOP_TIMEOUT_S)

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
