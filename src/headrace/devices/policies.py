"""Shared access policies: named pairs of keys that open the service's side of the hub, each with its rights.

The five policies that every hub of Azure has are made once for a project, with random keys. Documents of the collection
`policies`; nothing but the policies' owner reads the keys out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Conflict, NotFound, UserError, nearest
from headrace.devices.rules import KEY_BYTES, make_key
from headrace.docstore.contract import ABSENT, DocStore

COLLECTION = "policies"
Right = Literal["RegistryRead", "RegistryWrite", "ServiceConnect", "DeviceConnect"]
RIGHTS: tuple[Right, ...] = ("RegistryRead", "RegistryWrite", "ServiceConnect", "DeviceConnect")
DEFAULTS: dict[str, tuple[Right, ...]] = {
    "iothubowner": RIGHTS,
    "service": ("ServiceConnect",),
    "device": ("DeviceConnect",),
    "registryRead": ("RegistryRead",),
    "registryReadWrite": ("RegistryRead", "RegistryWrite"),
}
OWNER = "iothubowner"
POLICIES_MAX = 100

log = structlog.get_logger()


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One policy; either key signs its tokens."""

    name: str
    primary_key: str
    secondary_key: str
    rights: tuple[Right, ...]
    created: int = 0  # ticks

    @property
    def keys(self) -> tuple[str, str]:
        return (self.primary_key, self.secondary_key)

    def __repr__(self) -> str:
        return f"Policy(name={self.name!r}, rights={self.rights!r}, keys=***)"

    def __rich_repr__(self) -> Any:
        yield "name", self.name
        yield "keys", "***"


def policy_body(policy: Policy) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(policy)
    del body["name"]
    return body


def policy_from_body(name: str, body: dict[str, Any]) -> Policy:
    return msgspec.convert({**body, "name": name}, Policy)


class PolicyStore:
    """Reads and writes policies. `random_bytes(n)` makes keys: `os.urandom`, or a seeded one in tests."""

    def __init__(self, docs: DocStore, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._clock = clock
        self._random_bytes = random_bytes

    async def ensure(self) -> list[Policy]:
        """Make those of the default policies that do not exist; returns all. Safe in many processes at once."""
        there = {policy.name for policy in await self.list()}
        for name in [name for name in DEFAULTS if name not in there]:
            try:
                await self.create(name, DEFAULTS[name])
            except Conflict:
                continue  # another process was quicker
        return await self.list()

    async def list(self) -> list[Policy]:
        """By name, the default ones first."""
        found = await self._docs.query(COLLECTION, limit=POLICIES_MAX)
        order = {name: place for place, name in enumerate(DEFAULTS)}
        policies = [policy_from_body(document.id, document.body) for document in found]
        return sorted(policies, key=lambda policy: (order.get(policy.name, len(order)), policy.name))

    async def get(self, name: str) -> Policy:
        """Raises NotFound with the nearest name."""
        found = await self._docs.get(COLLECTION, name)
        if found is None:
            raise await self._missing(name)
        return policy_from_body(name, found.body)

    async def create(self, name: str, rights: Sequence[Right]) -> Policy:
        """Raises Conflict (`policy.exists`), UserError for a name or a right that is none."""
        if not (1 <= len(name) <= 64 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            raise UserError(f"{name[:64]!r} is no policy name", hint="letters, digits, - and _", code="policy.name")
        if not rights or set(rights) - set(RIGHTS):
            raise UserError(
                "a policy without a known right", hint=f"rights are {', '.join(RIGHTS)}", code="policy.rights"
            )
        if await self._docs.count(COLLECTION) >= POLICIES_MAX:
            raise UserError(f"there are {POLICIES_MAX} policies", hint="delete one first", code="policy.too_many")
        policy = Policy(
            name=name,
            primary_key=self._key(),
            secondary_key=self._key(),
            rights=tuple(right for right in RIGHTS if right in rights),
            created=self._clock.now(),
        )
        try:
            await self._docs.put(COLLECTION, name, policy_body(policy), if_match=ABSENT)
        except Conflict as exc:
            raise Conflict(f"there is a policy {name!r}", hint="choose another name", code="policy.exists") from exc
        log.info("policy.created", policy=name, rights=list(policy.rights))
        return policy

    async def rotate(self, name: str, which: Literal["primary", "secondary"]) -> Policy:
        """Give a policy a new key. Tokens signed with the old one are refused from now on. Raises NotFound, Conflict."""
        found = await self._docs.get(COLLECTION, name)
        if found is None:
            raise await self._missing(name)
        policy = msgspec.structs.replace(policy_from_body(name, found.body), **{f"{which}_key": self._key()})
        await self._docs.put(COLLECTION, name, policy_body(policy), if_match=found.etag)
        log.info("policy.rotated", policy=name, key=which)
        return policy

    async def delete(self, name: str) -> None:
        """Raises NotFound; UserError for a default policy, which would come back with other keys."""
        if name in DEFAULTS:
            raise UserError(f"{name!r} is always there", hint="rotate its keys instead", code="policy.default")
        if not await self._docs.delete(COLLECTION, name):
            raise await self._missing(name)
        log.info("policy.deleted", policy=name)

    def _key(self) -> str:
        return make_key(self._random_bytes(KEY_BYTES))

    async def _missing(self, name: str) -> NotFound:
        names = [policy.name for policy in await self.list()]
        hint = nearest(name, names) or f"there are: {', '.join(names)}"
        return NotFound(f"there is no policy {name!r}", hint=hint, code="policy.not_found")


def shared_connection_string(hostname: str, port: int, policy: Policy) -> str:
    """What service clients take; the port only where it is not 443."""
    host = hostname if port in (443, -1) else f"{hostname}:{port}"
    return f"HostName={host};SharedAccessKeyName={policy.name};SharedAccessKey={policy.primary_key}"
