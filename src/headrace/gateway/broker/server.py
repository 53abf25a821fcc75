"""The broker as a whole: its ports, its tasks, what its connections share.

Start reads the store before it opens a port; stop closes the ports first, then makes durable and answers what came in.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from importlib.metadata import version
from pathlib import Path

import structlog

from headrace.core.clock import Clock
from headrace.core.config import BrokerConfig
from headrace.core.errors import UserError
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.eventlog.contract import EventLog
from headrace.gateway.broker.admission import Admission
from headrace.gateway.broker.exchange import Exchange
from headrace.gateway.broker.hall import SYSTEM, Hall
from headrace.gateway.broker.ingest import BrokerIngest
from headrace.gateway.broker.message import Message
from headrace.gateway.broker.store import Store
from headrace.gateway.broker.templates import Templates
from headrace.gateway.broker.users import Users, check_rules
from headrace.gateway.limits import RateLimit
from headrace.gateway.listen import BACKLOG, is_loopback, open_port, port_of
from headrace.gateway.streams import DeviceStreams

SWEEP_S = 0.5
RETAINED_SWEEP_S = 60.0
STOP_TIMEOUT_S = 10.0

log = structlog.get_logger()


class Broker:
    """Built idle; `start` and `stop` once each.

    `folder` holds its file (`broker.sqlite`). `ids` and `entropy` (16 random bytes or more) are of this process.
    `registered` tells whether a device is in the registry and enabled, for templates that ask. `base` is where relative
    paths of certificates begin. Raises UserError for settings that would be unsafe or mean nothing.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        events: EventLog,
        folder: Path,
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
        ids: EventIds,
        entropy: bytes,
        streams: Iterable[str] = (),
        registered: Callable[[str], bool] = lambda device: True,
        base: Path = Path(),
        limit: RateLimit | None = None,
    ) -> None:
        _check(config)
        check_rules(config.acl)
        self._config = config
        self._base = base
        self._clock = clock
        self._began = clock.monotonic()
        self._store = Store(folder / "broker.sqlite", clock, linger_s=config.commit_interval_ms / 1000)
        self._exchange = Exchange(config, self._store, clock, metrics)
        self.ingest = BrokerIngest(
            events, clock=clock, rng=rng, ids=ids, metrics=metrics, streams=DeviceStreams(streams), limit=limit
        )
        self._admission = Admission(config, Users(config.users, entropy))
        self.hall = Hall(
            config,
            exchange=self._exchange,
            store=self._store,
            ingest=self.ingest,
            admission=self._admission,
            templates=Templates(config.templates),
            clock=clock,
            ids=ids,
            metrics=metrics,
            registered=registered,
        )
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._failure = ""
        self.port = self.tls_port = -1

    async def start(self) -> int:
        """Read what was kept, open the ports and serve; returns the plain port (-1 when that is off).

        Raises UserError for a host that is not this machine's, Unavailable when the store cannot be read.
        """
        context = _tls(self._config, self._base) if self._config.tls_port >= 0 else None
        self._exchange.restore(await asyncio.to_thread(self._store.load))
        await asyncio.to_thread(self.ingest.warm)
        loop = asyncio.get_running_loop()
        opened: list[socket.socket] = []
        try:
            if self._config.port >= 0:
                opened.append(self._open(self._config.port, "port"))
                self.port = port_of(opened[-1])
                self._servers.append(await loop.create_server(self.hall.protocol, sock=opened[-1], backlog=BACKLOG))
            if context is not None:
                opened.append(self._open(self._config.tls_port, "tls_port"))
                self.tls_port = port_of(opened[-1])
                self._servers.append(
                    await loop.create_server(self.hall.protocol, sock=opened[-1], backlog=BACKLOG, ssl=context)
                )
        except BaseException:
            for each in opened:
                each.close()
            self._store.close()
            raise
        self._tasks = [
            self._spawn(self.ingest.run(), "ingest"),
            self._spawn(self._store.run(), "store"),
            self._spawn(self._sweep(), "sweep"),
            self._spawn(self._system(), "system"),
        ]
        if self.port >= 0 and not is_loopback(self._config.host):
            log.warning("broker.unprotected", host=self._config.host, port=self.port, hint="passwords go in the clear")
        log.info("broker.listening", host=self._config.host, port=self.port, tls_port=self.tls_port)
        return self.port

    async def stop(self) -> None:
        """Stop accepting, make durable and answer what came in, close. Takes STOP_TIMEOUT_S at most."""
        self._admission.stopping = True
        for server in self._servers:
            server.close()
        for link in list(self.hall.links):
            link.hold("stopping")
        self.ingest.close()
        await asyncio.wait([task for task in self._tasks if task.get_name() == "ingest"], timeout=STOP_TIMEOUT_S)
        await self._settle()
        await self.hall.close()
        await self._settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._store.close()
        log.info("broker.stopped")

    def health(self) -> str:
        """What is wrong, for Health.register; empty when nothing is."""
        return self._failure or self.ingest.trouble or self._store.trouble

    async def _settle(self) -> None:
        """Wait until the store has written everything."""
        written = asyncio.Event()
        self._store.when_durable(written.set)
        try:
            await asyncio.wait_for(written.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            log.error("broker.stopped_early", error=self._store.trouble)

    def _open(self, port: int, setting: str) -> socket.socket:
        """A listening socket; where the port cannot be had, any free one and a clear line."""
        try:
            return open_port(self._config.host, port, setting=setting)
        except UserError as exc:
            if exc.code not in ("gateway.port_in_use", "gateway.port"):
                raise
            found = open_port(self._config.host, 0, setting=setting)
            log.warning("broker.port_changed", wanted=port, port=port_of(found), why=exc.message)
            return found

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._failure = f"broker's {task.get_name()} failed: {type(exc).__name__}: {exc}"
            log.error("broker.part_failed", part=task.get_name(), error=self._failure)

    async def _sweep(self) -> None:
        retained_at = self._clock.monotonic() + RETAINED_SWEEP_S
        while True:
            await self._clock.sleep(SWEEP_S)
            now = self._clock.monotonic()
            for link in list(self.hall.links):
                link.check(now)
            self._exchange.sweep()
            if now >= retained_at:
                retained_at = now + RETAINED_SWEEP_S
                self._exchange.sweep_retained()

    async def _system(self) -> None:
        if self._config.system_interval_s <= 0:
            return
        while True:
            for name, value in self._facts().items():
                message = Message(SYSTEM + b"broker/" + name.encode(), value.encode(), retain=True)
                self._exchange.retained.put(message)  # of this moment: not for the disk
                self.hall.publish(message)
            await self._clock.sleep(self._config.system_interval_s)

    def _facts(self) -> dict[str, str]:
        exchange = self._exchange
        return {
            "version": f"headrace {version('headrace')}",
            "uptime": f"{self._clock.monotonic() - self._began:.0f} seconds",
            "clients/connected": str(len(self.hall.links)),
            "clients/total": str(len(exchange.sessions)),
            "messages/received": str(self.hall.messages_in),
            "subscriptions/count": str(exchange.router.count),
            "retained messages/count": str(exchange.retained.count),
        }


def _check(config: BrokerConfig) -> None:
    if config.anonymous and not is_loopback(config.host):
        raise UserError(
            f"a broker on {config.host!r} would let in everybody without a name",
            hint="set [broker] anonymous = false and add users with `headrace broker user add`, or host = 127.0.0.1",
            code="broker.anonymous",
        )
    if config.tls_port >= 0 and not (config.tls_certificate and config.tls_key):
        raise UserError(
            "the broker's TLS port needs a certificate",
            hint="set [broker] tls_certificate and tls_key to PEM files",
            code="broker.tls",
        )


def _tls(config: BrokerConfig, base: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(base / config.tls_certificate, base / config.tls_key)
        if config.tls_client_ca:
            context.load_verify_locations(base / config.tls_client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except OSError as exc:
        raise UserError(
            f"the broker's certificate cannot be read: {exc}", hint="check [broker] tls_*", code="broker.tls"
        ) from exc
    return context
