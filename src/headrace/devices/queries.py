"""Reads of the identity registry: single look-ups, and the directory that a gateway keeps in memory.

The directory is filled from the change feed alone, from its beginning, so there is no gap between loading and following.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec
import structlog

from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import NotFound, Unavailable, nearest
from headrace.devices.model import (
    COLLECTION,
    MODULES,
    Device,
    Module,
    Registered,
    RegisteredModule,
    Status,
    from_body,
    module_from_body,
)
from headrace.devices.policies import COLLECTION as POLICIES
from headrace.devices.policies import Policy, policy_from_body
from headrace.docstore.contract import Change, DocStore

PAGE = 5000
WAIT_S = 10.0
RETRY_S = 1.0

OnChange = Callable[[str, Device | None], None]
OnModuleChange = Callable[[str, Module | None], None]

T = TypeVar("T")

log = structlog.get_logger()


class DeviceQueries:
    """Reads straight from the documents."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def find(self, id: str) -> Device | None:
        found = await self._docs.get(COLLECTION, id)
        return None if found is None else from_body(found.id, found.body)

    async def get(self, id: str) -> Device:
        """Raises NotFound with the nearest id that exists."""
        device = await self.find(id)
        if device is None:
            like = await self._docs.query(COLLECTION, prefix=id[:2], limit=1000)
            hint = nearest(id, (document.id for document in like)) or "`headrace device list` shows them"
            raise NotFound(f"there is no device {id!r}", hint=hint, code="device.not_found")
        return device

    async def registered(self, id: str) -> Registered | None:
        """With its etag."""
        found = await self._docs.get(COLLECTION, id)
        return None if found is None else Registered(from_body(found.id, found.body), found.etag)

    async def module(self, device: str, id: str) -> RegisteredModule | None:
        found = await self._docs.get(MODULES, f"{device}/{id}")
        return None if found is None else RegisteredModule(module_from_body(found.id, found.body), found.etag)

    async def modules(self, device: str, *, limit: int = 1000) -> list[RegisteredModule]:
        """The modules of one device by id."""
        found = await self._docs.query(MODULES, prefix=f"{device}/", limit=limit)
        return [RegisteredModule(module_from_body(document.id, document.body), document.etag) for document in found]

    async def list(
        self,
        *,
        prefix: str = "",
        status: Status | None = None,
        site: str | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> list[Device]:
        """Devices by id, after id `after`."""
        asked: dict[str, Any] = {"status": status, "site": site}
        where = {name: value for name, value in asked.items() if value is not None}
        found = await self._docs.query(COLLECTION, where=where, prefix=prefix, after=after, limit=limit)
        return [from_body(document.id, document.body) for document in found]

    async def count(self) -> int:
        return await self._docs.count(COLLECTION)

    async def count_disabled(self) -> int:
        """Reads them: meant for the few that are."""
        count, after = 0, ""
        while page := await self._docs.query(COLLECTION, where={"status": "disabled"}, after=after, limit=PAGE):
            count += len(page)
            after = page[-1].id
        return count


class DeviceDirectory:
    """Every device, module and shared policy, in memory, as fresh as the change feed: what a gateway asks on each connect.

    `on_change` callbacks are told (id, device), `on_module_change` ones (device/module, module), with None for a deleted
    one; they must be quick and not raise.
    """

    def __init__(self, docs: DocStore, *, clock: Clock | None = None) -> None:
        self._docs = docs
        self._clock = clock or SystemClock()
        self._devices: dict[str, Device] = {}
        self._modules: dict[str, Module] = {}
        self._policies: dict[str, Policy] = {}
        self._applied: dict[str, Callable[[Change, bool], None]] = {
            COLLECTION: self._device_changed,
            MODULES: self._module_changed,
            POLICIES: self._policy_changed,
        }
        self._since = dict.fromkeys(self._applied, 0)
        self._refreshing = asyncio.Lock()
        self.on_change: list[OnChange] = []
        self.on_module_change: list[OnModuleChange] = []

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._devices.values()))

    def get(self, id: str) -> Device | None:
        return self._devices.get(id)

    def module(self, device: str, id: str) -> Module | None:
        return self._modules.get(f"{device}/{id}")

    def policy(self, name: str) -> Policy | None:
        return self._policies.get(name)

    async def open(self) -> None:
        """Load everything. Callbacks are not told. Raises Unavailable."""
        for collection in self._applied:
            while await self._follow(collection, wait_s=0.0, tell=False):
                pass
        log.info("directory.loaded", devices=len(self._devices), modules=len(self._modules))

    async def run(self) -> None:
        """Follow the feeds until cancelled; while the store is unavailable, try again every RETRY_S."""
        async with asyncio.TaskGroup() as group:
            for collection in self._applied:
                group.create_task(self._run(collection))

    async def refresh(self) -> None:
        """Learn of all that exists by now: for one that nobody knows, who may have been made a moment ago. Raises
        Unavailable."""
        async with self._refreshing:  # a flood of unknown names asks the store one question at a time
            for collection in self._applied:
                while await self._follow(collection, wait_s=0.0, tell=True):
                    pass

    async def _run(self, collection: str) -> None:
        while True:
            try:
                await self._follow(collection, wait_s=WAIT_S, tell=True)
            except Unavailable as exc:
                log.warning("directory.interrupted", code=exc.code, error=exc.message)
                await self._clock.sleep(RETRY_S)

    async def _follow(self, collection: str, *, wait_s: float, tell: bool) -> int:
        changes = await self._docs.changes(collection, self._since[collection], limit=PAGE, wait_s=wait_s)
        for change in changes:
            if change.sequence <= self._since[collection]:
                continue  # `run` and `refresh` may hear of the same one
            try:
                self._applied[collection](change, tell)
            except msgspec.ValidationError:  # written by another version, or by hand: it must not lock the others out
                log.exception("directory.document_unreadable", collection=collection, document=change.id)
            self._since[collection] = change.sequence
        return len(changes)

    def _device_changed(self, change: Change, tell: bool) -> None:
        device = None if change.body is None else from_body(change.id, change.body)
        _keep(self._devices, change.id, device)
        _tell(self.on_change if tell else (), change.id, device)

    def _module_changed(self, change: Change, tell: bool) -> None:
        module = None if change.body is None else module_from_body(change.id, change.body)
        _keep(self._modules, change.id, module)
        _tell(self.on_module_change if tell else (), change.id, module)

    def _policy_changed(self, change: Change, tell: bool) -> None:
        _keep(self._policies, change.id, None if change.body is None else policy_from_body(change.id, change.body))


def _keep(things: dict[str, T], id: str, thing: T | None) -> None:
    if thing is None:
        things.pop(id, None)
    else:
        things[id] = thing


def _tell(callbacks: Iterable[Callable[[str, T | None], None]], id: str, thing: T | None) -> None:
    for callback in callbacks:
        try:
            callback(id, thing)
        except Exception:
            log.exception("directory.callback_failed", changed=id)
