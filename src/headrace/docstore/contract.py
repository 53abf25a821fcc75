"""What a document store promises.

A document is a JSON object under (collection, id). Every write gives it a new etag and a place in the collection's change
feed. Changes by other processes on the same store are seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Json = dict[str, Any]
ANY = "*"
"""`if_match=ANY`: the document must exist, whatever its etag."""
ABSENT = ""
"""`if_match=ABSENT`: the document must not exist."""


class Document(NamedTuple):
    id: str
    etag: str
    body: Json
    updated: int  # ticks
    expires: int | None  # ticks


class Change(NamedTuple):
    """One step of a change feed. `body` is None where the document was deleted or expired."""

    sequence: int
    collection: str
    id: str
    etag: str
    body: Json | None


class DocStore(Protocol):
    async def get(self, collection: str, id: str) -> Document | None: ...

    async def put(
        self,
        collection: str,
        id: str,
        body: Mapping[str, Any],
        *,
        if_match: str | None = None,
        ttl_s: float | None = None,
    ) -> Document:
        """Raises Conflict when `if_match` (an etag, ANY or ABSENT) does not hold."""
        ...

    async def put_many(
        self,
        collection: str,
        bodies: Mapping[str, Mapping[str, Any]],
        *,
        if_match: str | None = None,
        newest_by: str = "",
    ) -> None:
        """Insert or replace many in one transaction. Where `if_match` (ANY or ABSENT) fails for one of them, Conflict and
        none is written. With `newest_by`, a top-level field of integers, those are left out whose stored body has a larger
        one: of what several processes say late, the newest stays."""
        ...

    async def delete(self, collection: str, id: str, *, if_match: str | None = None) -> bool:
        """False when there was none."""
        ...

    async def query(
        self,
        collection: str,
        *,
        where: Mapping[str, Any] | None = None,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Document]:
        """Documents whose top-level fields equal `where` and whose ids start with `prefix`, by id, after id `after`."""
        ...

    async def count(self, collection: str) -> int: ...

    async def changes(self, collection: str, since: int, *, limit: int = 1000, wait_s: float = 0.0) -> Sequence[Change]:
        """Changes after sequence `since`, oldest first; waits up to `wait_s` for the first."""
        ...

    async def expire(self) -> int:
        """Delete what is past its time (reads already do not see it); returns how many."""
        ...

    async def close(self) -> None: ...
