"""`/enrollments`, `/enrollmentGroups` and `/registrations`: what the provisioning service's API does with a request."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from headrace.core.errors import HeadraceError
from headrace.devices.enrolments import Enrolled, EnrolmentCommands, EnrolmentQueries, Kind
from headrace.devices.provisioning import ProvisioningService, Registered
from headrace.docstore.contract import ABSENT, ANY
from headrace.gateway.provisioning_shapes import (
    BAD,
    ID_FIELDS,
    EnrolmentJson,
    attestation_json,
    enrolment_json,
    kind_of,
    registration_json,
)
from headrace.gateway.rest.errors import Denied, told
from headrace.gateway.rest.exchange import Answer, Request, answer_json, converted
from headrace.gateway.rest.query import CONTINUATION, ITEM_TYPE, PAGE_SIZE

BULK_MAX = 100
ROWS_DEFAULT, ROWS_MAX = 100, 1000
BULK_FIELDS: dict[Kind, str] = {"individual": "enrollments", "group": "enrollmentGroups"}
ITEM_TYPES: dict[Kind, str] = {"individual": "enrollment", "group": "enrollmentGroup"}
_QUERY = re.compile(r"\s*select\s+\*(\s+from\s+\w+)?\s*;?\s*", re.IGNORECASE)


class Enrolments:
    def __init__(self, commands: EnrolmentCommands, queries: EnrolmentQueries, service: ProvisioningService) -> None:
        self.commands = commands
        self.queries = queries
        self.service = service

    def of(self, kind: Kind) -> EnrolmentsOf:
        return EnrolmentsOf(self, kind)

    async def registration(self, request: Request, id: str) -> Answer:
        return _registration(await self.service.queries.get(id))

    async def forget(self, request: Request, id: str) -> Answer:
        await self.service.delete(id, if_match=_etag(request.if_match))
        return Answer(204)

    async def registrations(self, request: Request, group: str) -> Answer:
        """Of one enrolment group, a page at a time."""
        known = (await self.queries.get("group", group)).enrolment.id
        size, after = _page(request)
        found = await self.service.queries.of_group(known, after=after, limit=size + 1)
        rows = [registration_json(each) for each in found[:size]]
        last = found[size - 1].registration.id if len(found) > size else ""
        return _paged(rows, "deviceRegistration", last)


class EnrolmentsOf:
    """The handlers of individual enrolments, or of groups."""

    def __init__(self, all_: Enrolments, kind: Kind) -> None:
        self._all = all_
        self._kind: Kind = kind

    async def put(self, request: Request, id: str) -> Answer:
        """Creates without If-Match, changes with it. Keys are told once, to who has written them."""
        wanted = (await request.struct(EnrolmentJson)).enrolment(self._kind, id)
        expected = ABSENT if request.if_match is None else request.if_match
        return _answer(await self._all.commands.put(self._kind, wanted, if_match=expected), keys=True)

    async def get(self, request: Request, id: str) -> Answer:
        found = await self._all.queries.get(self._kind, id)
        registration = await self._all.service.queries.find(id) if self._kind == "individual" else None
        return _answer(found, keys=False, registration=registration)

    async def delete(self, request: Request, id: str) -> Answer:
        await self._all.commands.delete(self._kind, id, if_match=_etag(request.if_match))
        return Answer(204)

    async def attestation(self, request: Request, id: str) -> Answer:
        """With its keys."""
        found = await self._all.queries.get(self._kind, id)
        return answer_json(attestation_json(found.enrolment.attestation, keys=True))

    async def query(self, request: Request) -> Answer:
        """All of them, a page at a time."""
        asked = await request.json()
        text = asked.get("query") if isinstance(asked, dict) else None
        if not isinstance(text, str) or not _QUERY.fullmatch(text):
            raise Denied(BAD, "only whole lists can be asked for", hint='send {"query": "SELECT * FROM enrollments"}')
        size, after = _page(request)
        found = await self._all.queries.list(self._kind, after=after, limit=size + 1)
        last = found[size - 1].enrolment.id if len(found) > size else ""
        return _paged([enrolment_json(each, keys=False) for each in found[:size]], ITEM_TYPES[self._kind], last)

    async def bulk(self, request: Request) -> Answer:
        """Each entry by itself, in order; 200 also where some failed, for the answer says which."""
        asked = await request.json()
        field = BULK_FIELDS[self._kind]
        entries = asked.get(field) if isinstance(asked, dict) else None
        mode = str(asked.get("mode", "")).lower() if isinstance(asked, dict) else ""
        if not isinstance(entries, list) or not 1 <= len(entries) <= BULK_MAX:
            raise Denied(BAD, f"a bulk request takes a list {field}", hint=f"send 1 to {BULK_MAX}")
        if mode not in ("create", "update", "updateifmatchetag", "delete"):
            raise Denied(BAD, f"mode is {mode[:40]!r}", hint="use create, update, updateIfMatchETag or delete")
        errors: list[dict[str, Any]] = []
        for entry in entries:
            try:
                await self._one(mode, converted(entry, EnrolmentJson))
            except HeadraceError as exc:
                said = entry.get(ID_FIELDS[self._kind]) if isinstance(entry, dict) else None
                errors.append({ID_FIELDS[self._kind]: said, "errorCode": kind_of(exc).number, "errorStatus": told(exc)})
        return answer_json({"isSuccessful": not errors, "errors": errors})

    async def _one(self, mode: str, entry: EnrolmentJson) -> None:
        id = entry.named(self._kind)
        if not id:
            raise Denied(BAD, f"{ID_FIELDS[self._kind]} is missing", hint="name each")
        if mode == "delete":
            await self._all.commands.delete(self._kind, id)
            return
        expected = {"create": ABSENT, "update": ANY}.get(mode) if mode != "updateifmatchetag" else None
        if expected is None:
            expected = (entry.etag or "").strip('"')
            if not expected:
                raise Denied(BAD, "this mode needs an etag", hint="send etag")
        await self._all.commands.put(self._kind, entry.enrolment(self._kind, id), if_match=expected)


def _answer(found: Enrolled, *, keys: bool, registration: Registered | None = None) -> Answer:
    body = enrolment_json(found, keys=keys, registration=registration)
    return answer_json(body, headers={"etag": f'"{found.etag}"'})


def _registration(found: Registered) -> Answer:
    return answer_json(registration_json(found), headers={"etag": f'"{found.etag}"'})


def _etag(given: str | None) -> str | None:
    """None and `*` are whatever there is."""
    return None if given in (None, ANY) else given


def _page(request: Request) -> tuple[int, str]:
    """Rows wanted, and the id after which to go on. Raises Denied (400)."""
    size = request.number(PAGE_SIZE, request.headers.get(PAGE_SIZE), default=ROWS_DEFAULT)
    size = ROWS_MAX if size < 1 else min(size, ROWS_MAX)
    try:
        given = request.headers.get(CONTINUATION, "").encode("ascii", "replace")
        after = base64.b64decode(given, altchars=b"-_", validate=True)
        return size, after.decode()
    except (binascii.Error, ValueError) as exc:
        raise Denied(BAD, f"{CONTINUATION} is none of ours", hint="send it as it came") from exc


def _paged(rows: Sequence[dict[str, Any]], item_type: str, last: str) -> Answer:
    headers = {ITEM_TYPE: item_type}
    if last:
        headers[CONTINUATION] = base64.urlsafe_b64encode(last.encode()).decode()
    return answer_json(rows, headers=headers)
