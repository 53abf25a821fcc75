"""Which devices are connected: documents of the collection `presence`, one a client id.

Body: {device, module, connected, since, reason, address, worker, last_activity, history}; `since` is ticks, when it last came or
went, `worker` the gateway process that it came to, `last_activity` ticks of what it sent last, to the minute while it is
connected, and `history` its last comings and goings as [ticks, connected, reason, address], oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeAlias

from headrace.core.clock import Clock
from headrace.core.errors import Conflict
from headrace.docstore.contract import DocStore, Document
from headrace.gateway.writer import DocumentWriter
from headrace.wire.iothub.topics import Identity

COLLECTION = "presence"
PAGE = 1000
WORKER = "gateway-0"
HISTORY_MAX = 10
HISTORIES_MAX = 20_000
"""Devices whose history is kept in memory: those that came or went last."""

Step: TypeAlias = tuple[int, bool, str, str]
"""One coming or going: ticks, connected, reason, address."""


class Arrival(NamedTuple):
    """A device came (`connected`) or went."""

    identity: Identity
    connected: bool
    at: int  # ticks
    reason: str  # why it went


OnArrival: TypeAlias = Callable[[Arrival], None]


class Presence:
    """`shared`: other processes write of the same devices.

    `on_arrival` callbacks are told who comes and goes; they must be quick and not raise.
    """

    def __init__(
        self, docs: DocStore, writer: DocumentWriter, clock: Clock, *, worker: str = WORKER, shared: bool = False
    ) -> None:
        self._docs = docs
        self._writer = writer
        self._clock = clock
        self._worker = worker
        self._newest_by = "since" if shared else ""
        self._histories: OrderedDict[str, tuple[Step, ...]] = OrderedDict()
        self.on_arrival: list[OnArrival] = []

    async def open(self, *, alive: Collection[str] | None = None) -> None:
        """Whoever an earlier process of our name left as connected is not: it may have been killed before it could say so.
        With `alive`, the other processes that run now, nor is who came to one that does not run any more."""
        after = ""
        while page := await self._docs.query(COLLECTION, where={"connected": True}, after=after, limit=PAGE):
            after = page[-1].id
            left = [found for found in page if self._has_gone(found.body.get("worker", WORKER), alive)]
            await asyncio.gather(*(self._left(found) for found in left))

    def _has_gone(self, worker: str, alive: Collection[str] | None) -> bool:
        return worker == self._worker or (alive is not None and worker not in alive)

    async def _left(self, found: Document) -> None:
        """Unless it came to another process meanwhile, which has said so."""
        gone = {"connected": False, "since": self._clock.now(), "reason": "gateway_restarted"}
        with contextlib.suppress(Conflict):
            await self._docs.put(COLLECTION, found.id, {**found.body, **gone}, if_match=found.etag)

    def connected(self, identity: Identity, address: str) -> None:
        self._put(identity, connected=True, reason="", address=address)

    def disconnected(self, identity: Identity, address: str, reason: str) -> None:
        self._put(identity, connected=False, reason=reason, address=address)

    def active(self, identity: Identity, address: str, *, since: int, at: int) -> None:
        """It is connected since `since` and sent something at `at`. For a minute's beat, not for each message."""
        history = self._histories.get(identity.client_id, ())
        if history and history[-1][1]:
            since = history[-1][0]  # as it was told when it came: what is written of it later must not look older
        self._write(identity, connected=True, since=since, reason="", address=address, at=at, history=history)

    def moved(self, identity: Identity) -> None:
        """It connected to another process, which says so itself: what we had still to say is out of date."""
        self._writer.drop(COLLECTION, identity.client_id)

    def _put(self, identity: Identity, *, connected: bool, reason: str, address: str) -> None:
        now = self._clock.now()
        earlier = self._histories.pop(identity.client_id, ())
        history = (*earlier[1 - HISTORY_MAX :], (now, connected, reason, address))
        self._histories[identity.client_id] = history
        if len(self._histories) > HISTORIES_MAX:
            self._histories.popitem(last=False)
        self._write(identity, connected=connected, since=now, reason=reason, address=address, at=now, history=history)
        for callback in self.on_arrival:
            callback(Arrival(identity, connected, now, reason))

    def _write(
        self,
        identity: Identity,
        *,
        connected: bool,
        since: int,
        reason: str,
        address: str,
        at: int,
        history: tuple[Step, ...],
    ) -> None:
        body: dict[str, Any] = {
            "device": identity.device,
            "module": identity.module,
            "connected": connected,
            "since": since,
            "reason": reason,
            "address": address,
            "worker": self._worker,
            "last_activity": at,
            "history": history,
        }
        self._writer.put(COLLECTION, identity.client_id, body, newest_by=self._newest_by)
