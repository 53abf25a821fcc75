"""The provisioning service's own identity: an ID scope that devices name, and a policy that opens its service API.

Both are made once for a project and stay. They are the document `service` of the collection `provisioning`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog

from headrace.core.errors import Conflict, NotFound, Unavailable
from headrace.devices.rules import KEY_BYTES, make_key
from headrace.docstore.contract import ABSENT, DocStore

COLLECTION, DOCUMENT = "provisioning", "service"
POLICY = "provisioningserviceowner"
SCOPE_BYTES = 5

log = structlog.get_logger()


class ServiceIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Keys are base64; either signs the policy's tokens."""

    id_scope: str
    policy: str = POLICY
    primary_key: str
    secondary_key: str

    @property
    def keys(self) -> tuple[str, str]:
        return self.primary_key, self.secondary_key

    def __repr__(self) -> str:
        return f"ServiceIdentity(id_scope={self.id_scope!r}, policy={self.policy!r}, keys=***)"

    def __rich_repr__(self) -> Any:
        yield "id_scope", self.id_scope
        yield "keys", "***"


class ServiceIdentities:
    """Reads and makes the one there is. `random_bytes(n)` makes scope and keys. All calls may raise Unavailable."""

    def __init__(self, docs: DocStore, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._random_bytes = random_bytes

    async def ensure(self) -> ServiceIdentity:
        """The identity, made now where there is none. Safe in many processes at once."""
        found = await self._find()
        if found is not None:
            return found
        made = ServiceIdentity(
            id_scope=f"0ne{self._random_bytes(SCOPE_BYTES).hex().upper()}",
            primary_key=self._key(),
            secondary_key=self._key(),
        )
        try:
            await self._docs.put(COLLECTION, DOCUMENT, msgspec.to_builtins(made), if_match=ABSENT)
        except Conflict:
            return await self.get()  # another process was quicker
        log.info("provisioning.created", id_scope=made.id_scope)
        return made

    async def get(self) -> ServiceIdentity:
        """As it is now. Raises NotFound before `ensure`."""
        found = await self._find()
        if found is None:
            raise NotFound("there is no provisioning service yet", hint="start the hub", code="provisioning.absent")
        return found

    async def rotate(self, which: Literal["primary", "secondary"]) -> ServiceIdentity:
        """Give the policy a new key; tokens signed with the old one are refused from now on. The ID scope stays."""
        await self.ensure()
        document = await self._docs.get(COLLECTION, DOCUMENT)
        if document is None:
            raise Unavailable("the provisioning service's identity was removed meanwhile", hint="try again")
        changed = {**document.body, f"{which}_key": self._key()}
        await self._docs.put(COLLECTION, DOCUMENT, changed, if_match=document.etag)
        log.info("policy.rotated", policy=POLICY, key=which)
        return msgspec.convert(changed, ServiceIdentity)

    async def _find(self) -> ServiceIdentity | None:
        found = await self._docs.get(COLLECTION, DOCUMENT)
        return None if found is None else msgspec.convert(found.body, ServiceIdentity)

    def _key(self) -> str:
        return make_key(self._random_bytes(KEY_BYTES))
