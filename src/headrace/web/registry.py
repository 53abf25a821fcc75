"""Every device in short, for lists: sorted, filtered and cut into pages without asking the store for each.

Filled from the change feeds of `devices` and `presence`, and brought up to date when somebody asks: nothing runs while nobody
looks. About 400 bytes a device; the first look at 50,000 devices reads them once, later ones only what changed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from headrace.core.clock import TICKS_PER_MS
from headrace.core.errors import UserError
from headrace.devices.hub_view import PRESENCE
from headrace.devices.model import COLLECTION
from headrace.docstore.contract import Change, DocStore

PAGE = 5000
SITES_MAX = 500

Sort: TypeAlias = Literal["id", "site", "status", "authentication", "connected", "since", "seen", "created"]
Connected: TypeAlias = Literal["", "yes", "no", "never"]


class Line(msgspec.Struct, kw_only=True):
    """One device in a list. Times are ms since 1970, 0 for never."""

    id: str
    status: str = "enabled"
    authentication: str = "sas"
    site: str = ""
    entity: str = ""
    created: float = 0.0
    connected: bool = False
    since: float = 0.0
    reason: str = ""
    seen: float = 0.0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines. `text` is looked for anywhere in id, entity and site; `site` is None for any."""

    text: str = ""
    connected: Connected = ""
    status: str = ""
    authentication: str = ""
    site: str | None = None
    sort: Sort = "id"
    descending: bool = False
    offset: int = 0
    limit: int = 50


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """`matching` is how many there are on all pages."""

    devices: list[Line]
    matching: int
    total: int
    connected: int
    disabled: int
    sites: dict[str, int]


class RegistryIndex:
    """Calls may raise Unavailable."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs
        self._lines: dict[str, Line] = {}
        self._presence: dict[str, tuple[bool, float, str, float]] = {}
        self._since = {COLLECTION: 0, PRESENCE: 0}
        self._apply: dict[str, Callable[[Change], None]] = {COLLECTION: self._device, PRESENCE: self._present}
        self._catching_up = asyncio.Lock()

    async def page(self, wanted: Wanted) -> Page:
        await self._catch_up()
        lines = self._matching(wanted)
        return Page(
            devices=lines[wanted.offset : wanted.offset + wanted.limit],
            matching=len(lines),
            total=len(self._lines),
            connected=sum(line.connected for line in self._lines.values()),
            disabled=sum(line.status == "disabled" for line in self._lines.values()),
            sites=dict(Counter(line.site for line in self._lines.values()).most_common(SITES_MAX)),
        )

    async def lines(self, ids: Sequence[str]) -> list[Line]:
        """Those of `ids` that there are."""
        await self._catch_up()
        return [self._lines[id] for id in ids if id in self._lines]

    async def _catch_up(self) -> None:
        async with self._catching_up:
            for collection, apply in self._apply.items():
                while changes := await self._docs.changes(collection, self._since[collection], limit=PAGE):
                    for change in changes:
                        apply(change)
                    self._since[collection] = changes[-1].sequence

    def _device(self, change: Change) -> None:
        if change.body is None:
            self._lines.pop(change.id, None)
            return
        body = change.body
        connected, since, reason, seen = self._presence.get(change.id, (False, 0.0, "", 0.0))
        self._lines[change.id] = Line(
            id=change.id,
            status=str(body.get("status", "enabled")),
            authentication=str(body.get("authentication", "sas")),
            site=str(body.get("site") or ""),
            entity=str(body.get("entity_id") or change.id),
            created=_ms(body.get("created")),
            connected=connected,
            since=since,
            reason=reason,
            seen=seen,
        )

    def _present(self, change: Change) -> None:
        if "/" in change.id:
            return  # a module's
        body: dict[str, Any] = change.body or {}
        found = (
            bool(body.get("connected")),
            _ms(body.get("since")),
            str(body.get("reason") or ""),
            _ms(body.get("last_activity")),
        )
        self._presence[change.id] = found
        if line := self._lines.get(change.id):
            line.connected, line.since, line.reason, line.seen = found

    def _matching(self, wanted: Wanted) -> list[Line]:
        text = wanted.text.strip().lower()
        tests: list[Callable[[Line], bool]] = []
        if text:
            tests.append(
                lambda line: text in line.id.lower() or text in line.entity.lower() or text in line.site.lower()
            )
        if wanted.connected:
            tests.append(_CONNECTED[wanted.connected])
        if wanted.status:
            tests.append(lambda line: line.status == wanted.status)
        if wanted.authentication:
            tests.append(lambda line: line.authentication == wanted.authentication)
        if wanted.site is not None:
            tests.append(lambda line: line.site == wanted.site)
        found = [line for line in self._lines.values() if all(test(line) for test in tests)]
        found.sort(key=lambda line: line.id)
        if wanted.sort != "id":
            found.sort(key=_key(wanted.sort), reverse=wanted.descending)
        elif wanted.descending:
            found.reverse()
        return found


_CONNECTED: dict[str, Callable[[Line], bool]] = {
    "yes": lambda line: line.connected,
    "no": lambda line: not line.connected,
    "never": lambda line: not line.since,
}


def wanted(**asked: Any) -> Wanted:
    """Raises UserError that names what can be asked for."""
    try:
        return msgspec.convert(asked, Wanted)
    except msgspec.ValidationError as exc:
        sorts = ", ".join(get_args(Sort))
        raise UserError(str(exc), hint=f"sort by {sorts}; connected is yes, no or never", code="web.list") from exc


def _key(sort: Sort) -> Callable[[Line], Any]:
    return lambda line: getattr(line, sort)


def _ms(ticks: Any) -> float:
    return int(ticks) / TICKS_PER_MS if isinstance(ticks, int) and ticks > 0 else 0.0
