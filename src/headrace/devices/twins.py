"""Twins: what operators want of a device (desired), what it says of itself (reported), and what people noted (tags).

A twin is one document of the collection `twins`, under the client id (`device` or `device/module`). Writes carry the etag of
the document they were made from, so any number of processes may change one twin and no change is lost. A twin that nobody has
changed yet has no document.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
import structlog

from headrace.core.clock import YEAR_ONE, Clock, to_iso
from headrace.core.errors import Conflict, Unavailable
from headrace.devices import twin_rules as rules
from headrace.devices.model import Device, Module
from headrace.devices.turns import Turns
from headrace.devices.twin_rules import Json, SectionName
from headrace.docstore.contract import ABSENT, DocStore
from headrace.wire.iothub.topics import Identity

COLLECTION = "twins"
TRIES_MAX = 20
FRESH_ETAG = "AAAAAAAAAAE="
ANY_ETAG = "*"
PAGE = 1000

log = structlog.get_logger()

Kind: TypeAlias = Literal["updateTwin", "replaceTwin"]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Desired or reported properties. `metadata` is a tree beside `values`; empty where nothing was ever set."""

    values: Json = {}
    metadata: Json = {}
    version: int = 1


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    etag: str = FRESH_ETAG
    version: int = 1
    tags: Json = {}
    desired: Section = Section()
    reported: Section = Section()
    model_id: str = ""

    def for_device(self) -> Json:
        """What the device itself may read: no tags, no metadata."""
        return {
            "desired": {**self.desired.values, "$version": self.desired.version},
            "reported": {**self.reported.values, "$version": self.reported.version},
        }


class Connection(NamedTuple):
    """What the gateway knows of an identity; see gateway.presence."""

    connected: bool = False
    since: int = YEAR_ONE  # ticks
    last_activity: int = YEAR_ONE  # ticks


OnDesired: TypeAlias = Callable[[Identity, Json], None]
"""Told (identity, the patch for the device with its `$version`) after it is durable. Quick, and never raises."""
OnChange: TypeAlias = Callable[[Identity, Kind, Json, Twin], None]
"""Told (identity, kind, the change as in IoT Hub's twin change events, the twin after it). Quick, and never raises."""


class TwinService:
    """Read and change twins. Whether the device exists is for the caller to know. All calls may raise Unavailable."""

    def __init__(self, docs: DocStore, clock: Clock, *, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._clock = clock
        self._random_bytes = random_bytes
        self._turns = Turns()  # fewer conflicts, and patches in the order sent
        self.on_desired: list[OnDesired] = []
        self.on_change: list[OnChange] = []

    async def get(self, identity: Identity) -> Twin:
        """The twin as it is durable now, by whichever process; a fresh one where there is no document."""
        return (await self._read(identity))[0]

    async def report(self, identity: Identity, patch: Any, base_version: int | None = None) -> int:
        """Merge a device's patch into reported; the new version. Raises TwinInvalid; Conflict when reported is not at
        `base_version`."""
        wanted = rules.checked(patch, "reported")

        def change(twin: Twin) -> Twin:
            if base_version is not None and base_version != twin.reported.version:
                raise Conflict(
                    f"reported is at version {twin.reported.version}, not {base_version}",
                    hint="get the twin again",
                    code="twin.version",
                )
            return msgspec.structs.replace(twin, reported=self._merged(twin.reported, wanted, "reported"))

        twin = await self._change(identity, change)
        version = twin.reported.version
        self._tell(identity, "updateTwin", {"properties": {"reported": {**wanted, "$version": version}}}, twin)
        return version

    async def update(self, identity: Identity, patch: Json, *, if_match: str | None = None) -> Twin:
        """Merge `{"tags"?, "properties": {"desired"?}}`; a section that is null is emptied, other keys mean nothing.

        Raises TwinInvalid; Conflict when `if_match` (an etag without quotes, or `*`) does not hold.
        """
        wanted = _sections(patch)
        pushed: Json = {}

        def change(twin: Twin) -> Twin:
            pushed.clear()
            changes: dict[str, Any] = {}
            _check_etag(twin, if_match)
            if "tags" in wanted:
                tags = {} if wanted["tags"] is None else rules.merge(twin.tags, wanted["tags"])
                rules.check_size(tags, "tags")
                changes["tags"] = tags
            if "desired" in wanted:
                steps = wanted["desired"]
                if steps is None:
                    steps = rules.replacement(twin.desired.values, {})
                changes["desired"] = self._merged(twin.desired, steps, "desired")
                pushed.update(steps, **{"$version": changes["desired"].version})
            return msgspec.structs.replace(twin, **changes)

        return await self._service_change(identity, change, "updateTwin", wanted, pushed)

    async def replace(self, identity: Identity, body: Json, *, if_match: str | None = None) -> Twin:
        """Set tags and desired as a whole; a section that is absent stays as it is. Raises as `update`."""
        wanted = _sections(body)
        pushed: Json = {}

        def change(twin: Twin) -> Twin:
            pushed.clear()
            changes: dict[str, Any] = {}
            _check_etag(twin, if_match)
            if "tags" in wanted:
                changes["tags"] = rules.without_nulls(wanted["tags"] or {})
                rules.check_size(changes["tags"], "tags")
            if "desired" in wanted:
                values = rules.without_nulls(wanted["desired"] or {})
                rules.check_size(values, "desired")
                steps = rules.replacement(twin.desired.values, values)
                version = twin.desired.version + 1
                metadata = rules.stamp({}, values, self._mark("desired", version))
                changes["desired"] = Section(values=values, metadata=metadata, version=version)
                pushed.update(steps, **{"$version": version})
            return msgspec.structs.replace(twin, **changes)

        return await self._service_change(identity, change, "replaceTwin", wanted, pushed)

    async def create_many(self, bodies: Mapping[Identity, Json]) -> None:
        """Tags and desired of twins that nobody has changed yet, in one transaction: meant for devices that are made.

        Nobody is told. Raises TwinInvalid; Conflict when one of them has been changed, and then nothing is written.
        """
        made: dict[str, Json] = {}
        for identity, body in bodies.items():
            wanted = _sections(body)
            tags, values = (rules.without_nulls(wanted.get(name) or {}) for name in ("tags", "desired"))
            rules.check_size(tags, "tags")
            desired = self._merged(Section(), values, "desired") if values else Section()
            etag = base64.b64encode(self._random_bytes(8)).decode()
            made[identity.client_id] = msgspec.to_builtins(Twin(etag=etag, version=2, tags=tags, desired=desired))
        await self._docs.put_many(COLLECTION, made, if_match=ABSENT)

    async def set_model(self, identity: Identity, model_id: str) -> None:
        """Remember the model that a device named when it connected. Moves no version."""
        twin, _ = await self._read(identity)
        if twin.model_id != model_id:
            async with self._turns.of(identity.client_id):
                await self._attempts(identity, lambda old: msgspec.structs.replace(old, model_id=model_id))

    async def delete(self, identity: Identity) -> None:
        """Forget a twin, with those of a device's modules: call it when the identity is deleted."""
        await self._docs.delete(COLLECTION, identity.client_id)
        if identity.module is None:
            prefix = f"{identity.device}/"
            while page := await self._docs.query(COLLECTION, prefix=prefix, limit=PAGE):
                for found in page:
                    await self._docs.delete(COLLECTION, found.id)

    async def _service_change(
        self, identity: Identity, change: Callable[[Twin], Twin], kind: Kind, wanted: Json, pushed: Json
    ) -> Twin:
        if not wanted:
            return change(await self.get(identity))  # nothing to do but to check the etag
        twin = await self._change(identity, change)
        if pushed:
            for desired_callback in self.on_desired:
                desired_callback(identity, pushed)
        said: Json = {"tags": wanted["tags"]} if "tags" in wanted else {}
        if "desired" in wanted:
            said["properties"] = {"desired": {**(wanted["desired"] or {}), "$version": twin.desired.version}}
        self._tell(identity, kind, said, twin)
        return twin

    def _tell(self, identity: Identity, kind: Kind, patch: Json, twin: Twin) -> None:
        for callback in self.on_change:
            callback(identity, kind, patch, twin)

    def _merged(self, section: Section, patch: Json, name: SectionName) -> Section:
        values = rules.merge(section.values, patch)
        rules.check_size(values, name)
        version = section.version + 1
        metadata = rules.stamp(section.metadata, patch, self._mark(name, version))
        return Section(values=values, metadata=metadata, version=version)

    def _mark(self, name: SectionName, version: int) -> Json:
        mark: Json = {"$lastUpdated": to_iso(self._clock.now())}
        return mark | {"$lastUpdatedVersion": version} if name == "desired" else mark

    async def _change(self, identity: Identity, change: Callable[[Twin], Twin]) -> Twin:
        """Apply `change` to the twin that is there when it is written: version and etag move."""

        def moved(old: Twin) -> Twin:
            etag = base64.b64encode(self._random_bytes(8)).decode()
            return msgspec.structs.replace(change(old), version=old.version + 1, etag=etag)

        async with self._turns.of(identity.client_id):
            return await self._attempts(identity, moved)

    async def _attempts(self, identity: Identity, change: Callable[[Twin], Twin]) -> Twin:
        for _ in range(TRIES_MAX):
            twin, document_etag = await self._read(identity)
            changed = change(twin)
            try:
                await self._docs.put(
                    COLLECTION, identity.client_id, msgspec.to_builtins(changed), if_match=document_etag
                )
            except Conflict:
                continue  # another process changed it since we looked: change what is there now
            return changed
        raise Unavailable(f"the twin of {identity.client_id!r} is changed by others all the time", hint="try again")

    async def _read(self, identity: Identity) -> tuple[Twin, str]:
        """The twin and its document's etag, ABSENT for none."""
        found = await self._docs.get(COLLECTION, identity.client_id)
        return (Twin(), ABSENT) if found is None else (twin_from_body(found.body), found.etag)


def twin_from_body(body: Json) -> Twin:
    """A twin from its document, for who reads the collection `twins` directly."""
    return msgspec.convert(body, Twin)


def document(
    twin: Twin,
    device: Device,
    module: Module | None = None,
    connection: Connection | None = None,
    *,
    messages_waiting: int = 0,
) -> Json:
    """The twin as services see it (IoT Hub's JSON); of `module` when one is given."""
    known = connection or Connection()
    credentials: Device | Module = module or device
    seen: Json = {"deviceId": device.id}
    if module is not None:
        seen["moduleId"] = module.id
    seen |= {
        "etag": twin.etag,
        "deviceEtag": base64.b64encode(credentials.generation_id.encode()[-8:]).decode(),
        "status": device.status,
        "statusReason": device.status_reason or None,
        "statusUpdateTime": to_iso(device.status_updated or YEAR_ONE),
        "connectionState": "Connected" if known.connected else "Disconnected",
        "lastActivityTime": to_iso(known.last_activity),
        "cloudToDeviceMessageCount": messages_waiting,
        "authenticationType": credentials.authentication,
        "x509Thumbprint": {
            "primaryThumbprint": credentials.primary_thumbprint or None,
            "secondaryThumbprint": credentials.secondary_thumbprint or None,
        },
        "modelId": twin.model_id,
        "version": twin.version,
        "tags": twin.tags,
        "properties": {
            "desired": _with_metadata(twin.desired, credentials.created, desired=True),
            "reported": _with_metadata(twin.reported, credentials.created, desired=False),
        },
    }
    if module is None:
        seen["capabilities"] = {"iotEdge": device.iot_edge}
        if device.scope:
            seen["deviceScope"] = device.scope
        if device.parents:
            seen["parentScopes"] = list(device.parents)
    return seen


def _with_metadata(section: Section, created: int, *, desired: bool) -> Json:
    metadata = section.metadata or (
        {"$lastUpdated": to_iso(created)} | ({"$lastUpdatedVersion": section.version} if desired else {})
    )
    return {**section.values, "$metadata": metadata, "$version": section.version}


def _sections(patch: Any) -> Json:
    """`tags` and `desired` of a service's patch, checked; None where it says null."""
    if not isinstance(patch, dict):
        raise rules.TwinInvalid("a twin patch must be a JSON object", hint='send {"tags": {}, "properties": {}}')
    wanted: Json = {}
    if "tags" in patch:
        wanted["tags"] = None if patch["tags"] is None else rules.checked(patch["tags"], "tags")
    properties = patch.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise rules.TwinInvalid("`properties` of a twin patch must be an object", hint='send {"desired": {}}')
    if properties and "desired" in properties:
        desired = properties["desired"]
        wanted["desired"] = None if desired is None else rules.checked(desired, "desired")
    return wanted


def _check_etag(twin: Twin, if_match: str | None) -> None:
    if if_match not in (None, ANY_ETAG, twin.etag):
        raise Conflict(f"the twin has etag {twin.etag!r}, not {if_match!r}", hint="get it again", code="twin.etag")
