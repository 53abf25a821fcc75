"""Writes to the identity registry. Everyone else learns of them from the documents' change feed.

A change reads, changes and writes back with the etag it read, so two that change one device at once both hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Conflict, NotFound, Unavailable, UserError
from headrace.devices.mailbox import COLLECTION as MAILBOX
from headrace.devices.model import (
    COLLECTION,
    MODULES,
    Asked,
    Authentication,
    Credentials,
    Device,
    Draft,
    Module,
    ModuleDraft,
    Registered,
    RegisteredModule,
    Status,
    from_body,
    module_body,
    module_from_body,
    to_body,
)
from headrace.devices.rules import (
    KEY_BYTES,
    MODULES_MAX,
    STATUS_REASON_CHARS_MAX,
    check_id,
    check_key,
    check_thumbprint,
    edge_device_of,
    edge_scope,
    make_key,
)
from headrace.devices.twins import COLLECTION as TWINS
from headrace.docstore.contract import ABSENT, ANY, DocStore, Document

TRIES_MAX = 10
PAGE = 5000
T = TypeVar("T", Device, Module)

log = structlog.get_logger()


class DeviceCommands:
    """Create, change and delete devices and modules. `random_bytes(n)` makes keys: `os.urandom`, or a seeded one in tests."""

    def __init__(self, docs: DocStore, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._clock = clock
        self._random_bytes = random_bytes

    async def create(
        self,
        id: str,
        *,
        primary_key: str = "",
        secondary_key: str = "",
        entity_id: str = "",
        site: str = "",
        status: Status = "enabled",
    ) -> Device:
        """Raises Conflict when there is one of that id, UserError for an id or key that breaks the rules."""
        made = await self.register(
            Draft(
                id=id,
                status=status,
                primary_key=primary_key,
                secondary_key=secondary_key,
                entity_id=entity_id,
                site=site,
            )
        )
        return made.device

    async def register(self, draft: Draft) -> Registered:
        """Create one device as drafted. Raises Conflict (`device.exists`) and UserError."""
        device = await self._with_scopes(self._make(draft), draft)
        try:
            document = await self._docs.put(COLLECTION, device.id, to_body(device), if_match=ABSENT)
        except Conflict as exc:
            raise _exists([device.id]) from exc
        log.info("device.created", device=device.id)
        return Registered(device, document.etag)

    async def create_many(
        self, drafts: Iterable[Draft | str], *, if_exists: Literal["conflict", "keep"] = "conflict"
    ) -> list[Device]:
        """All of them in one transaction, in the order given; a text is a draft with that id.

        Devices that exist already make it a Conflict and nothing is written; with `keep` they stay as they are and are
        returned with their own keys. Parents must exist before.
        """
        wanted = [Draft(id=draft) if isinstance(draft, str) else draft for draft in drafts]
        made = {draft.id: await self._with_scopes(self._make(draft), draft) for draft in wanted}
        if len(made) < len(wanted) and if_exists == "conflict":
            twice = next(id for id, times in Counter(draft.id for draft in wanted).items() if times > 1)
            raise Conflict(f"device {twice!r} is asked for twice", hint="name each once", code="device.exists")
        there: dict[str, Device] = {}
        for _ in range(TRIES_MAX):
            new = {id: device for id, device in made.items() if id not in there}
            try:
                await self._docs.put_many(
                    COLLECTION, {id: to_body(device) for id, device in new.items()}, if_match=ABSENT
                )
            except Conflict:  # the store has looked, so that nobody has to look where all are new
                there = await self._existing(list(made))
                if there and if_exists == "conflict":
                    raise _exists(sorted(there)) from None
                continue
            log.info("devices.created", created=len(new), kept=len(there))
            return [there.get(draft.id, made[draft.id]) for draft in wanted]
        raise Unavailable(f"{len(made)} devices are being created by others too", hint="try again")

    async def replace(self, draft: Draft, *, if_match: str = ANY) -> Registered:
        """Make an existing device as drafted. What the draft leaves out (keys, entity, site, scopes) stays as it was.

        Raises NotFound, Conflict (`device.etag`) when `if_match` is another etag than its own, UserError.
        """

        async def changed(device: Device) -> Device:
            now = self._clock.now()
            fresh = msgspec.structs.replace(
                device,
                **self._credentials(draft, device),
                status=draft.status,
                status_reason=_reason(draft.status_reason),
                status_updated=now if draft.status != device.status else device.status_updated,
                entity_id=draft.entity_id or device.entity_id,
                site=draft.site or device.site,
                iot_edge=device.iot_edge if draft.iot_edge is None else draft.iot_edge,
                updated=now,
            )
            return await self._with_scopes(fresh, draft)

        return await self._change(draft.id, changed, if_match=if_match)

    async def enable(self, id: str) -> Device:
        return await self._set(id, status="enabled")

    async def disable(self, id: str) -> Device:
        """It is refused at its next connect, and gateways drop a connection it has."""
        return await self._set(id, status="disabled")

    async def set_site(self, id: str, site: str) -> Device:
        return await self._set(id, site=site)

    async def rotate(self, id: str, which: Literal["primary", "secondary"]) -> Device:
        """Give a device a new key. Connections that it has stay; the old key opens no new one."""
        return await self._set(id, **{f"{which}_key": self._key("")})

    async def delete(self, id: str, *, if_match: str | None = None) -> None:
        """Its modules go too, with all twins and waiting messages.

        Raises NotFound when there is none, Conflict (`device.etag`) for another etag.
        """
        try:
            there = await self._docs.delete(COLLECTION, id, if_match=if_match)
        except Conflict as exc:
            raise (_missing(id) if await self._docs.get(COLLECTION, id) is None else _stale("device", id)) from exc
        if not there:
            raise _missing(id)
        await self._docs.delete(TWINS, id)
        for collection in (MODULES, TWINS, MAILBOX):
            for part in await self._docs.query(collection, prefix=f"{id}/", limit=PAGE):
                await self._docs.delete(collection, part.id)
        log.info("device.deleted", device=id)

    async def create_module(self, draft: ModuleDraft) -> RegisteredModule:
        """Raises NotFound without its device, Conflict (`module.exists`), UserError."""
        module = Module(
            device=draft.device,
            id=check_id(draft.id, kind="module"),
            managed_by=draft.managed_by,
            generation_id=self._generation(),
            created=self._clock.now(),
            **self._credentials(draft, None),
        )
        if await self._docs.get(COLLECTION, draft.device) is None:
            raise _missing(draft.device)
        others = await self._docs.query(MODULES, prefix=f"{draft.device}/", limit=MODULES_MAX)
        if len(others) >= MODULES_MAX and module.client_id not in {other.id for other in others}:
            raise UserError(
                f"device {draft.device!r} has {len(others)} modules", hint="delete one first", code="module.too_many"
            )
        try:
            document = await self._docs.put(MODULES, module.client_id, module_body(module), if_match=ABSENT)
        except Conflict as exc:
            raise Conflict(
                f"device {draft.device!r} already has a module {draft.id!r}",
                hint="choose another id, or delete it",
                code="module.exists",
            ) from exc
        log.info("module.created", device=draft.device, module=draft.id)
        return RegisteredModule(module, document.etag)

    async def replace_module(self, draft: ModuleDraft, *, if_match: str = ANY) -> RegisteredModule:
        """Make an existing module as drafted; keys left out stay. Raises NotFound, Conflict (`module.etag`), UserError."""

        async def changed(document: Document) -> tuple[Module, dict[str, Any]]:
            module = module_from_body(document.id, document.body)
            module = msgspec.structs.replace(
                module,
                **self._credentials(draft, module),
                managed_by=draft.managed_by or module.managed_by,
                updated=self._clock.now(),
            )
            return module, module_body(module)

        name = f"{draft.device}/{draft.id}"
        module, etag = await self._rewrite(MODULES, name, changed, if_match=if_match)
        log.info("module.changed", device=draft.device, module=draft.id)
        return RegisteredModule(module, etag)

    async def delete_module(self, device: str, id: str, *, if_match: str | None = None) -> None:
        """Raises NotFound when there is none, Conflict (`module.etag`) for another etag."""
        name = f"{device}/{id}"
        try:
            there = await self._docs.delete(MODULES, name, if_match=if_match)
        except Conflict as exc:
            there = await self._docs.get(MODULES, name) is not None
            if there:
                raise _stale("module", name) from exc
        if not there:
            raise _missing_module(device, id)
        await self._docs.delete(TWINS, name)
        log.info("module.deleted", device=device, module=id)

    def _make(self, draft: Draft) -> Device:
        return Device(
            id=check_id(draft.id),
            status=draft.status,
            status_reason=_reason(draft.status_reason),
            generation_id=self._generation(),
            entity_id=draft.entity_id or draft.id,
            site=draft.site,
            iot_edge=bool(draft.iot_edge),
            created=self._clock.now(),
            **self._credentials(draft, None),
        )

    def _generation(self) -> str:
        return f"{int.from_bytes(self._random_bytes(8)) % 10**18:018d}"

    def _key(self, given: str) -> str:
        return check_key(given) if given else make_key(self._random_bytes(KEY_BYTES))

    def _credentials(self, asked: Asked, old: Credentials | None) -> dict[str, Any]:
        """The fields of Credentials that `asked` leads to; `old` is what the identity has by now."""
        kind: Authentication = asked.authentication or (old.authentication if old is not None else "sas")
        kept = old if old is not None and old.authentication == kind else None
        fields: dict[str, Any] = dict.fromkeys(
            ("primary_key", "secondary_key", "primary_thumbprint", "secondary_thumbprint"), ""
        )
        if kind == "sas":
            for name in ("primary_key", "secondary_key"):
                fields[name] = self._key(getattr(asked, name) or (getattr(kept, name) if kept else ""))
        elif kind == "selfSigned":
            given = {name: getattr(asked, name) for name in ("primary_thumbprint", "secondary_thumbprint")}
            if not any(given.values()):
                given = {name: getattr(kept, name) if kept else "" for name in given}
            if not any(given.values()):
                raise UserError(
                    "a device with a certificate of its own needs a thumbprint",
                    hint="give x509Thumbprint.primaryThumbprint",
                    code="device.thumbprint",
                )
            fields |= {name: check_thumbprint(text) if text else "" for name, text in given.items()}
        return {"authentication": kind, **fields}

    async def _with_scopes(self, device: Device, draft: Draft) -> Device:
        """IoT Hub's edge hierarchy: an edge device has a scope of its own, a leaf its parent's, and both name the parent."""
        own = edge_scope(device.id, device.generation_id)
        said: Sequence[str] | None = draft.parents
        if device.iot_edge:
            said = [draft.scope] if said is None and draft.scope is not None and draft.scope != own else said
        elif draft.scope is not None:
            said = [draft.scope]
        parents = device.parents if said is None else tuple(scope for scope in said if scope and scope != own)
        for scope in set(parents) - set(device.parents):
            parent = await self._docs.get(COLLECTION, edge_device_of(scope) or "/")
            if parent is None or parent.id == device.id or parent.body.get("scope") != scope:
                raise _no_scope(scope)
        return msgspec.structs.replace(
            device, scope=own if device.iot_edge else next(iter(parents), ""), parents=parents
        )

    async def _existing(self, ids: Sequence[str]) -> dict[str, Device]:
        """Those of `ids` that exist: one look-up each for a few, one walk through the registry for many."""
        if len(ids) <= 20:
            documents = [await self._docs.get(COLLECTION, id) for id in ids]
            return {found.id: from_body(found.id, found.body) for found in documents if found is not None}
        wanted, after = set(ids), ""
        there: dict[str, Device] = {}
        while page := await self._docs.query(COLLECTION, after=after, limit=PAGE):
            there |= {found.id: from_body(found.id, found.body) for found in page if found.id in wanted}
            after = page[-1].id
        return there

    async def _set(self, id: str, **fields: Any) -> Device:
        async def changed(device: Device) -> Device:
            now = self._clock.now()
            if fields.get("status", device.status) != device.status:
                device = msgspec.structs.replace(device, status_updated=now)
            return msgspec.structs.replace(device, **fields, updated=now)

        return (await self._change(id, changed, if_match=ANY)).device

    async def _change(self, id: str, changed: Callable[[Device], Awaitable[Device]], *, if_match: str) -> Registered:
        async def rewrite(document: Document) -> tuple[Device, dict[str, Any]]:
            device = await changed(from_body(document.id, document.body))
            return device, to_body(device)

        device, etag = await self._rewrite(COLLECTION, id, rewrite, if_match=if_match)
        log.info("device.changed", device=id)
        return Registered(device, etag)

    async def _rewrite(
        self,
        collection: str,
        id: str,
        rewrite: Callable[[Document], Awaitable[tuple[T, dict[str, Any]]]],
        *,
        if_match: str,
    ) -> tuple[T, str]:
        """Write what `rewrite` makes of a document; again while others change it meanwhile, unless an etag was asked for."""
        kind = "device" if collection == COLLECTION else "module"
        for _ in range(TRIES_MAX):
            found = await self._docs.get(collection, id)
            if found is None:
                raise _missing(id) if kind == "device" else _missing_module(*id.split("/", 1))
            if if_match not in (ANY, found.etag):
                raise _stale(kind, id)
            thing, body = await rewrite(found)
            try:
                return thing, (await self._docs.put(collection, id, body, if_match=found.etag)).etag
            except Conflict:
                continue  # somebody changed it since we looked: change what is there now
        raise Unavailable(f"{kind} {id!r} is being changed by others all the time", hint="try again")


def _reason(text: str) -> str:
    if len(text) > STATUS_REASON_CHARS_MAX:
        raise UserError(
            f"a status reason of {len(text)} characters",
            hint=f"use at most {STATUS_REASON_CHARS_MAX}",
            code="device.status_reason",
        )
    return text


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no device {id!r}", hint="`headrace device list` shows them", code="device.not_found")


def _missing_module(device: str, id: str) -> NotFound:
    return NotFound(f"device {device!r} has no module {id!r}", hint="create it first", code="module.not_found")


def _stale(kind: str, id: str) -> Conflict:
    return Conflict(f"{kind} {id!r} has another etag by now", hint="read it again", code=f"{kind}.etag")


def _no_scope(scope: str) -> UserError:
    return UserError(
        f"{scope[:200]!r} is the scope of no edge device", hint="name the deviceScope of one", code="device.scope"
    )


def _exists(ids: Sequence[str]) -> Conflict:
    named = ", ".join(repr(id) for id in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return Conflict(f"there is already a device {named}", hint="choose another id, or delete it", code="device.exists")
