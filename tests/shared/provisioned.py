"""A provisioning service over documents in memory: enrolments, linked hubs, and what devices would send."""

from __future__ import annotations

import base64
import random
from typing import Any

from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.devices.attestation import Attested, Attestor
from headrace.devices.certificates import AuthorityCommands, ClientCertificate, TrustedAuthorities
from headrace.devices.commands import DeviceCommands
from headrace.devices.enrolments import Attestation, Enrolled, Enrolment, EnrolmentCommands, EnrolmentQueries, Kind
from headrace.devices.provisioning import Hub, ProvisioningService, Registration
from headrace.devices.provisioning_allocation import LinkedHub
from headrace.devices.provisioning_hubs import LocalHub
from headrace.devices.provisioning_identity import ServiceIdentities
from headrace.devices.queries import DeviceQueries
from headrace.devices.twins import TwinService
from headrace.docstore.memory import MemoryDocStore
from headrace.wire.iothub import sas
from headrace.wire.iothub.provisioning import RegistrationName, derive_key

KEY = base64.b64encode(b"k" * 32).decode()
OTHER_KEY = base64.b64encode(b"o" * 32).decode()
HOST = "hub"


class Desk:
    """`hubs` are linked besides `hub`, which is the project's own."""

    def __init__(self, *hubs: LinkedHub, **more: Any) -> None:
        self.clock = ManualClock()
        self.docs = MemoryDocStore(self.clock)
        draw = random.Random(1).randbytes
        self.identities = ServiceIdentities(self.docs, draw)
        self.devices = DeviceCommands(self.docs, self.clock, draw)
        self.queries = DeviceQueries(self.docs)
        self.twins = TwinService(self.docs, self.clock, random_bytes=draw)
        self.enrolments = EnrolmentCommands(self.docs, self.clock, draw)
        self.enrolled = EnrolmentQueries(self.docs)
        self.authorities = AuthorityCommands(self.docs, self.clock, draw)
        self.trusted = TrustedAuthorities(self.docs, self.clock)
        self.attestor = Attestor(self.enrolled, self.trusted, self.clock, leeway_s=0)
        self.local = LocalHub(self.devices, self.queries, self.twins)
        self.linked = [LinkedHub("this", HOST), *hubs]
        self.hubs: dict[str, Hub] = {HOST: self.local, **more.pop("reached", {})}
        self.service = ProvisioningService(
            self.docs,
            self.clock,
            linked=self.linked,
            hubs=self.hubs,
            allocation=more.pop("allocation", "hashed"),
            random_bytes=draw,
        )
        assert not more
        self.scope = ""

    async def open(self) -> None:
        self.scope = (await self.identities.ensure()).id_scope

    async def enrol(self, id: str, kind: Kind = "individual", **fields: Any) -> Enrolled:
        fields.setdefault("attestation", Attestation(primary_key=KEY, secondary_key=OTHER_KEY))
        return await self.enrolments.put(kind, Enrolment(id=id, **fields))

    def token(self, id: str, key: str = KEY, *, ttl_s: int = 60, scope: str | None = None) -> str:
        expires_s = self.clock.now() // TICKS_PER_S + ttl_s
        return sas.build(f"{scope or self.scope}/registrations/{id}", key, expires_s=expires_s)

    async def attest(
        self, id: str, key: str = KEY, *, token: str | None = None, shown: ClientCertificate | None = None
    ) -> Attested:
        """With a token, signed with `key` unless given, or with a certificate."""
        name = RegistrationName(self.scope, id)
        text = None if shown is not None else token or self.token(id, key)
        return await self.attestor.attest(name, scope=self.scope, token=text, shown=shown)

    async def register(self, id: str, key: str = KEY, *, address: str = "", payload: Any = None) -> Registration:
        found = await self.service.register(await self.attest(id, key), payload=payload, address=address)
        return found.registration

    async def join(self, id: str, **more: Any) -> Registration:
        """As a member of a group whose key is KEY."""
        return await self.register(id, derive_key(KEY, id), **more)
