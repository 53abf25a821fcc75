"""The stores and services of one project in one process, each made when it is first asked for.

A command that only lists devices never touches the lake.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from headrace.assembly.database import warehouse_url
from headrace.core.clock import Clock, SystemClock
from headrace.core.config import Project, Settings
from headrace.core.observe.metrics import Metrics

# Imported where they are used: a part loads what it runs and no more, which is most of its start and of its memory.
if TYPE_CHECKING:
    import ssl

    from headrace.alerts.incidents import IncidentStore
    from headrace.devices.authority import DevelopmentAuthority
    from headrace.devices.certificates import AuthorityCommands
    from headrace.devices.commands import DeviceCommands
    from headrace.devices.enrolments import EnrolmentCommands
    from headrace.devices.policies import PolicyStore
    from headrace.devices.provisioning_identity import ServiceIdentities
    from headrace.devices.queries import DeviceQueries
    from headrace.devices.routes import Routing
    from headrace.devices.server_certificate import ServerCertificate
    from headrace.docstore.sqlite import SqliteDocStore
    from headrace.eventlog.contract import EventLog
    from headrace.functions.process import Means
    from headrace.gateway.client import DeviceClient
    from headrace.history.query import HistoryQuery
    from headrace.lake.delta import DeltaLake
    from headrace.ledger.sqlite import SqliteLedger
    from headrace.ml.registry import ModelRegistry
    from headrace.warehouse.postgres import PostgresWarehouse


def device_streams(settings: Settings) -> list[str]:
    """The streams besides `telemetry` that devices may send to."""
    return [name for name, config in settings.streams.items() if config.devices]


class Platform:
    """The stores and services of one project in one process, each made when it is first asked for."""

    def __init__(self, project: Project, *, clock: Clock | None = None) -> None:
        self.project = project
        self.settings = project.settings
        self.clock: Clock = clock or SystemClock()
        self.metrics = Metrics()
        self.rng = random.Random(os.urandom(16))
        self._closers: list[Callable[[], Awaitable[None]]] = []

    async def close(self) -> None:
        for closer in reversed(self._closers):
            await closer()
        self._closers.clear()

    @cached_property
    def log(self) -> EventLog:
        from headrace.eventlog.memory import MemoryEventLog
        from headrace.eventlog.sqlite import SqliteEventLog

        config = self.settings.eventlog
        made: EventLog
        if config.backend == "memory":
            made = MemoryEventLog(self.clock, partitions=config.partitions, deduplicate_s=config.deduplicate_s)
        else:
            made = SqliteEventLog(
                self.project.state_folder("log"),
                self.clock,
                partitions=config.partitions,
                deduplicate_s=config.deduplicate_s,
                size_bytes_max=config.size_bytes_max,
            )
        self._closers.append(made.close)
        return made

    @cached_property
    def docs(self) -> SqliteDocStore:
        from headrace.devices import mailbox, twins
        from headrace.docstore.sqlite import SqliteDocStore
        from headrace.gateway import limits_throttled, presence, refusals, sessions
        from headrace.jobs.model import DETAILS

        made = SqliteDocStore(
            self.project.state_folder("documents") / "documents.db",
            self.clock,
            newest_only=(twins.COLLECTION, presence.COLLECTION, sessions.COLLECTION),
            unfed=(mailbox.COLLECTION, mailbox.FEEDBACK, refusals.COLLECTION, limits_throttled.COLLECTION, DETAILS),
        )
        self._closers.append(made.close)
        return made

    @cached_property
    def ledger(self) -> SqliteLedger:
        from headrace.ledger.sqlite import SqliteLedger

        made = SqliteLedger(self.project.state_folder("ledger") / "ledger.db")
        self._closers.append(made.close)
        return made

    @cached_property
    def lake(self) -> DeltaLake:
        from headrace.lake.delta import DeltaLake

        path = self.settings.lake.path
        folder = (self.project.folder / path) if path else self.project.state_folder("lake")
        return DeltaLake(folder, self.clock)

    @cached_property
    def warehouse(self) -> PostgresWarehouse:
        from headrace.warehouse.postgres import PostgresWarehouse

        made = PostgresWarehouse(warehouse_url(self.project), self.clock)

        async def close() -> None:
            await asyncio.to_thread(made.close)

        self._closers.append(close)
        return made

    @cached_property
    def history(self) -> HistoryQuery:
        from headrace.history.query import HistoryQuery

        return HistoryQuery(self.lake, self.log, self.clock)

    @cached_property
    def device_commands(self) -> DeviceCommands:
        from headrace.devices.commands import DeviceCommands

        return DeviceCommands(self.docs, self.clock, os.urandom)

    @cached_property
    def device_queries(self) -> DeviceQueries:
        from headrace.devices.queries import DeviceQueries

        return DeviceQueries(self.docs)

    @cached_property
    def policies(self) -> PolicyStore:
        from headrace.devices.policies import PolicyStore

        return PolicyStore(self.docs, self.clock, os.urandom)

    @cached_property
    def routing(self) -> Routing:
        """Raises UserError that names a route which cannot be."""
        from headrace.devices.routes import Routing
        from headrace.gateway.routing import endpoint_problem

        settings = self.settings
        name = settings.hub.name or self.hostname
        return Routing(
            settings.routes,
            settings.enrichments,
            fallback=settings.hub.fallback,
            hub_name=name,
            problem=endpoint_problem,
        )

    @cached_property
    def provisioning(self) -> ServiceIdentities:
        from headrace.devices.provisioning_identity import ServiceIdentities

        return ServiceIdentities(self.docs, os.urandom)

    @cached_property
    def enrolments(self) -> EnrolmentCommands:
        from headrace.devices.enrolments import EnrolmentCommands

        return EnrolmentCommands(self.docs, self.clock, os.urandom)

    @cached_property
    def authorities(self) -> AuthorityCommands:
        from headrace.devices.certificates import AuthorityCommands

        return AuthorityCommands(self.docs, self.clock, os.urandom)

    @cached_property
    def authority(self) -> DevelopmentAuthority:
        from headrace.devices.authority import DevelopmentAuthority

        return DevelopmentAuthority(self.project.state_folder("certificates"), self.clock)

    @cached_property
    def incidents(self) -> IncidentStore:
        from headrace.alerts.incidents import IncidentStore

        return IncidentStore(self.docs, self.clock)

    @cached_property
    def registry(self) -> ModelRegistry:
        from headrace.ml.registry import ModelRegistry

        return ModelRegistry(self.project.state_folder("models"))

    @property
    def hostname(self) -> str:
        """What devices are told to connect to."""
        config = self.settings.gateway
        return config.hostname or ("localhost" if config.host in ("", "0.0.0.0", "::") else config.host)

    def means(self) -> Means:
        from headrace.functions.process import Means

        return Means(self.log, self.ledger, self.docs, self.clock, self.rng, self.project.state_folder("journals"))

    async def device_strings(self, devices: Sequence[str], sites: Sequence[str]) -> dict[str, str]:
        """Connection strings of devices; those that are new are registered."""
        from headrace.devices.connection_string import build
        from headrace.devices.model import Draft

        drafts = [Draft(id=device, site=site) for device, site in zip(devices, sites, strict=True)]
        made = await self.device_commands.create_many(drafts, if_exists="keep")
        return {device.id: build(self.hostname, device.id, device.primary_key) for device in made}

    def client(self, connection_string: str, addresses: Mapping[str, str]) -> DeviceClient:
        """The device's side of our own gateway, over plain MQTT where that is switched on, else over TLS."""
        from headrace.gateway.client import DeviceClient

        plain = addresses.get("mqtt-plain", "")
        address = plain or addresses["mqtt"]
        return DeviceClient.from_connection_string(
            connection_string,
            port=int(address.rpartition(":")[2]),
            clock=self.clock,
            rng=self.rng,
            tls=None if plain else self.client_tls,
        )

    @cached_property
    def server_certificate(self) -> DevelopmentAuthority | ServerCertificate:
        """What the gateway shows: the operator's own certificate where `[gateway] certificate` names one."""
        from headrace.devices.server_certificate import ServerCertificate

        config, folder = self.settings.gateway, self.project.folder
        if not config.certificate:
            return self.authority
        return ServerCertificate(folder / config.certificate, folder / config.certificate_key, self.clock)

    @cached_property
    def client_tls(self) -> ssl.SSLContext:
        return self.server_certificate.client_context()

    async def ledger_report(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """The books, after waiting up to `wait_s` for the stages to catch up."""
        from headrace.devices.routes import used_endpoints
        from headrace.gateway.streams import PLATFORM_STREAMS, STREAM
        from headrace.jobs.ledger import LedgerReport

        streams = self.settings.streams
        routed = used_endpoints(self.settings.routes.values())
        report = LedgerReport(
            self.log,
            self.ledger,
            clock=self.clock,
            lake=self.lake,
            lake_streams=lambda stream: stream not in streams or streams[stream].lake,
            warehouse=self.warehouse if self.settings.warehouse.enabled and self.settings.entities else None,
            entities={name: config.stream for name, config in self.settings.entities.items() if config.enabled},
            shared=frozenset({STREAM, *PLATFORM_STREAMS, *routed, *device_streams(self.settings)}),
        )
        return await report.run(wait_s=wait_s)
