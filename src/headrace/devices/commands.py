"""Writes to the identity registry. Everyone else learns of them from the documents' change feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Conflict, NotFound, Unavailable
from headrace.devices.model import COLLECTION, Device, Draft, Status, from_body, to_body
from headrace.devices.rules import KEY_BYTES, check_id, check_key, make_key
from headrace.docstore.contract import ABSENT, DocStore

TRIES_MAX = 10
PAGE = 5000

log = structlog.get_logger()


class DeviceCommands:
    """Create, change and delete devices. `random_bytes(n)` makes keys: `os.urandom`, or a seeded one in tests."""

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
        device = self._make(
            Draft(
                id=id,
                status=status,
                primary_key=primary_key,
                secondary_key=secondary_key,
                entity_id=entity_id,
                site=site,
            )
        )
        try:
            await self._docs.put(COLLECTION, id, to_body(device), if_match=ABSENT)
        except Conflict as exc:
            raise _exists([id]) from exc
        log.info("device.created", device=id)
        return device

    async def create_many(
        self, drafts: Iterable[Draft | str], *, if_exists: Literal["conflict", "keep"] = "conflict"
    ) -> list[Device]:
        """All of them in one transaction, in the order given; a text is a draft with that id.

        Devices that exist already make it a Conflict and nothing is written; with `keep` they stay as they are and are
        returned with their own keys.
        """
        wanted = [Draft(id=draft) if isinstance(draft, str) else draft for draft in drafts]
        made = {draft.id: self._make(draft) for draft in wanted}
        if len(made) < len(wanted) and if_exists == "conflict":
            twice = next(id for id, times in Counter(draft.id for draft in wanted).items() if times > 1)
            raise Conflict(f"device {twice!r} is asked for twice", hint="name each once", code="device.exists")
        for _ in range(TRIES_MAX):
            there = await self._existing(list(made))
            if there and if_exists == "conflict":
                raise _exists(sorted(there))
            new = {id: device for id, device in made.items() if id not in there}
            try:
                await self._docs.put_many(
                    COLLECTION, {id: to_body(device) for id, device in new.items()}, if_match=ABSENT
                )
            except Conflict:
                continue  # somebody made one of them since we looked
            log.info("devices.created", created=len(new), kept=len(there))
            return [there.get(draft.id, made[draft.id]) for draft in wanted]
        raise Unavailable(f"{len(made)} devices are being created by others too", hint="try again")

    async def enable(self, id: str) -> Device:
        return await self._change(id, status="enabled")

    async def disable(self, id: str) -> Device:
        """It is refused at its next connect, and gateways drop a connection it has."""
        return await self._change(id, status="disabled")

    async def set_site(self, id: str, site: str) -> Device:
        return await self._change(id, site=site)

    async def delete(self, id: str) -> None:
        """Raises NotFound when there is none."""
        if not await self._docs.delete(COLLECTION, id):
            raise _missing(id)
        log.info("device.deleted", device=id)

    def _make(self, draft: Draft) -> Device:
        return Device(
            id=check_id(draft.id),
            status=draft.status,
            primary_key=check_key(draft.primary_key) if draft.primary_key else make_key(self._random_bytes(KEY_BYTES)),
            secondary_key=check_key(draft.secondary_key)
            if draft.secondary_key
            else make_key(self._random_bytes(KEY_BYTES)),
            generation_id=f"{int.from_bytes(self._random_bytes(8)) % 10**18:018d}",
            entity_id=draft.entity_id or draft.id,
            site=draft.site,
            created=self._clock.now(),
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

    async def _change(self, id: str, **fields: Any) -> Device:
        for _ in range(TRIES_MAX):
            found = await self._docs.get(COLLECTION, id)
            if found is None:
                raise _missing(id)
            device = msgspec.structs.replace(from_body(id, found.body), **fields)
            try:
                await self._docs.put(COLLECTION, id, to_body(device), if_match=found.etag)
            except Conflict:
                continue  # somebody changed it since we looked: change what is there now
            log.info("device.changed", device=id, fields=sorted(fields))
            return device
        raise Unavailable(f"device {id!r} is being changed by others all the time", hint="try again")


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no device {id!r}", hint="`headrace device list` shows them", code="device.not_found")


def _exists(ids: Sequence[str]) -> Conflict:
    named = ", ".join(repr(id) for id in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return Conflict(f"there is already a device {named}", hint="choose another id, or delete it", code="device.exists")
