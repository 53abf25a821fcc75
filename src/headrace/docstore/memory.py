"""Documents in memory: for tests, and for nothing that must outlive its process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from headrace.core.clock import Clock
from headrace.docstore.contract import Change, Document
from headrace.docstore.encoding import check_match, check_scalars, decode, encode, expires_at


class _Kept(NamedTuple):
    etag: str
    text: str
    updated: int
    expires: int | None


class MemoryDocStore:
    """A DocStore of one event loop. Every change is kept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._collections: dict[str, dict[str, _Kept]] = {}
        self._changes: list[tuple[str, str, str, str | None]] = []
        self._changed = asyncio.Condition()

    async def get(self, collection: str, id: str) -> Document | None:
        kept = self._live(collection).get(id)
        return None if kept is None else _document(id, kept)

    async def put(
        self,
        collection: str,
        id: str,
        body: Mapping[str, Any],
        *,
        if_match: str | None = None,
        ttl_s: float | None = None,
    ) -> Document:
        now = self._clock.now()
        text, expires = encode(body), expires_at(now, ttl_s)
        self._check(collection, [id], if_match)
        kept = self._store(collection, id, text, now, expires)
        await self._tell()
        return _document(id, kept)

    async def put_many(
        self,
        collection: str,
        bodies: Mapping[str, Mapping[str, Any]],
        *,
        if_match: str | None = None,
        newest_by: str = "",
    ) -> None:
        now = self._clock.now()
        texts = {id: encode(body) for id, body in bodies.items()}
        self._check(collection, texts, if_match)
        for id, text in texts.items():
            stored = self._live(collection).get(id) if newest_by else None
            if stored is not None and decode(stored.text).get(newest_by, 0) > bodies[id][newest_by]:
                continue
            self._store(collection, id, text, now, None)
        await self._tell()

    async def delete(self, collection: str, id: str, *, if_match: str | None = None) -> bool:
        self._check(collection, [id], if_match)
        kept = self._live(collection).get(id)
        if kept is None:
            return False
        self._remove(collection, id, kept)
        await self._tell()
        return True

    async def query(
        self,
        collection: str,
        *,
        where: Mapping[str, Any] | None = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Document]:
        wanted = check_scalars(where or {})
        live = self._live(collection)
        documents = (_document(id, live[id]) for id in sorted(live) if id > after and id.startswith(prefix))
        fitting = (document for document in documents if all(document.body.get(k) == v for k, v in wanted.items()))
        return list(islice(fitting, limit))

    async def count(self, collection: str) -> int:
        return len(self._live(collection))

    async def changes(self, collection: str, since: int, *, limit: int = 1000, wait_s: float = 0.0) -> Sequence[Change]:
        def found() -> list[Change]:
            steps = enumerate(self._changes[since:], since + 1)
            own = (
                Change(sequence, collection, id, etag, None if text is None else decode(text))
                for sequence, (place, id, etag, text) in steps
                if place == collection
            )
            return list(islice(own, limit))

        if wait_s > 0 and not found():
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait_for(found), wait_s)
                except TimeoutError:
                    return []
        return found()

    async def expire(self) -> int:
        now = self._clock.now()
        gone = [
            (collection, id, kept)
            for collection, documents in self._collections.items()
            for id, kept in documents.items()
            if kept.expires is not None and kept.expires <= now
        ]
        for collection, id, kept in gone:
            self._remove(collection, id, kept)
        await self._tell()
        return len(gone)

    async def close(self) -> None:
        """Nothing to give back."""

    def _live(self, collection: str) -> dict[str, _Kept]:
        now = self._clock.now()
        documents = self._collections.get(collection, {})
        return {id: kept for id, kept in documents.items() if kept.expires is None or kept.expires > now}

    def _check(self, collection: str, ids: Sequence[str] | Mapping[str, str], if_match: str | None) -> None:
        if if_match is None:
            return
        live = self._live(collection)
        for id in ids:
            check_match(collection, id, live[id].etag if id in live else None, if_match)

    def _store(self, collection: str, id: str, text: str, now: int, expires: int | None) -> _Kept:
        kept = _Kept(f"{len(self._changes) + 1:x}", text, now, expires)
        self._collections.setdefault(collection, {})[id] = kept
        self._changes.append((collection, id, kept.etag, text))
        return kept

    def _remove(self, collection: str, id: str, kept: _Kept) -> None:
        del self._collections[collection][id]
        self._changes.append((collection, id, kept.etag, None))

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _document(id: str, kept: _Kept) -> Document:
    return Document(id, kept.etag, decode(kept.text), kept.updated, kept.expires)
