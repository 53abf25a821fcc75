"""The provisioning service of one gateway process: its parts put together, for the gateway to start and stop."""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.clock import Clock
from headrace.core.config import ProvisioningConfig
from headrace.devices.attestation import Attestor
from headrace.devices.certificates import TrustedAuthorities
from headrace.devices.commands import DeviceCommands
from headrace.devices.enrolments import EnrolmentCommands, EnrolmentQueries
from headrace.devices.provisioning import Hub, ProvisioningService
from headrace.devices.provisioning_allocation import LinkedHub, check
from headrace.devices.provisioning_hubs import LocalHub, RemoteHub
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.devices.queries import DeviceQueries
from headrace.devices.twins import TwinService
from headrace.docstore.contract import DocStore
from headrace.gateway.https import Asgi
from headrace.gateway.limits import RateLimit
from headrace.gateway.provisioning import ProvisioningDoor
from headrace.gateway.provisioning_desk import ProvisioningDesk
from headrace.gateway.provisioning_enrolments import Enrolments
from headrace.gateway.provisioning_rest import ProvisioningRest
from headrace.gateway.refusals import Refusals

OWN = "this"
"""What enrolments may call the hub they are at."""


def linked_hubs(config: ProvisioningConfig, host: str) -> list[LinkedHub]:
    """This hub, and the others that are linked."""
    own = LinkedHub(OWN, host, config.weight, config.sites, config.networks, config.allocate)
    return [own] + [
        LinkedHub(name, hub.host, hub.weight, hub.sites, hub.networks, hub.allocate)
        for name, hub in config.hubs.items()
    ]


class ProvisioningPart:
    """`host` is what devices connect to, `names` what this hub may be called in tokens, lower case. Raises UserError for
    settings that make no sense."""

    def __init__(
        self,
        config: ProvisioningConfig,
        *,
        host: str,
        names: frozenset[str],
        docs: DocStore,
        clock: Clock,
        twins: TwinService,
        authorities: TrustedAuthorities,
        refusals: Refusals,
        random_bytes: Callable[[int], bytes],
        leeway_s: float,
    ) -> None:
        linked = linked_hubs(config, host)
        check(linked)
        commands = DeviceCommands(docs, clock, random_bytes)
        hubs: dict[str, Hub] = {host: LocalHub(commands, DeviceQueries(docs), twins)}
        self._remote = {
            hub.host: RemoteHub(hub.connection_string.reveal(), clock, ca_file=hub.ca_file)
            for hub in config.hubs.values()
            if hub.connection_string
        }
        hubs |= self._remote
        enrolments = EnrolmentQueries(docs)
        service = ProvisioningService(
            docs,
            clock,
            linked=linked,
            hubs=hubs,
            allocation=config.allocation,
            random_bytes=random_bytes,
        )
        self._identities = ServiceIdentities(docs, random_bytes)
        self._desk = ProvisioningDesk(
            identities=self._identities,
            attestor=Attestor(enrolments, authorities, clock, leeway_s=leeway_s),
            service=service,
            refusals=refusals,
            limit=RateLimit(config.registrations_per_s_max, clock),
            clock=clock,
            random_bytes=random_bytes,
            at_once=config.answer_at_once,
        )
        self._enrolments = Enrolments(EnrolmentCommands(docs, clock, random_bytes), enrolments, service)
        self._names, self._refusals, self._clock = names, refusals, clock
        self._random_bytes, self._leeway_s = random_bytes, leeway_s
        self.mqtt = ProvisioningDoor(self._desk, hosts=names, clock=clock, connections_max=config.connections_max)

    def around(self, rest: Asgi) -> ProvisioningRest:
        """The HTTPS side; requests that are not for it go on to `rest`."""
        return ProvisioningRest(
            self._enrolments,
            self._desk,
            identities=self._identities,
            hosts=self._names,
            rest=rest,
            refusals=self._refusals,
            clock=self._clock,
            random_bytes=self._random_bytes,
            leeway_s=self._leeway_s,
        )

    async def open(self) -> None:
        """Make ID scope and policy where there are none. Raises Unavailable."""
        await self._identities.ensure()

    async def close(self) -> None:
        await self.mqtt.close()
        for hub in self._remote.values():
            await hub.close()
