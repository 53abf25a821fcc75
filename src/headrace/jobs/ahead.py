"""The next portion of a job, made ready while the one before is worked on.

Only a backlog is read ahead: when the last read came back full, the next one is read and decoded in a thread beside the
query. One portion waits at most, so memory stays at about two portions. A job that keeps up reads when its time comes, as
reading early would cut its portions small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from headrace.core.schema import EventBatch
from headrace.eventlog.contract import Positions
from headrace.jobs.inputs import Inputs, Portion
from headrace.sql.run import Decoded

Pieces = list[tuple[str, EventBatch | Decoded]]
"""What `Run.process` is called with, in order: the name of an input and rows for it."""


class Ready(NamedTuple):
    """A portion, and its rows for each input of the script that reads them."""

    portion: Portion
    pieces: Pieces


class Ahead:
    """Hands on what `inputs` has. `names` are the inputs of the script that read each stream; `decode` may run in a thread."""

    def __init__(
        self, inputs: Inputs, names: Mapping[str, Sequence[str]], decode: Callable[[str, EventBatch], Decoded]
    ) -> None:
        self._inputs = inputs
        self._names = names
        self._decode = decode
        self._next: asyncio.Task[Ready | None] | None = None
        self.positions = inputs.positions
        """Where what was handed on ends. `inputs` may be further."""

    async def take(self, *, wait_s: float, linger_s: float) -> Ready | None:
        """The next portion; None when neither rows nor time moved within `wait_s`."""
        ready: Ready | None = None
        if self._next is not None:
            task, self._next = self._next, None
            ready = await task
        if ready is None:
            portion = await self._inputs.take(wait_s=wait_s, linger_s=linger_s)
            ready = None if portion is None else Ready(portion, self.pieces(portion))
        self.positions = self._inputs.positions if ready is None else ready.portion.positions
        return ready

    def go_on(self) -> None:
        """Start on the portion after the one just taken, if there is a backlog."""
        if self._next is None and self._inputs.behind:
            self._next = asyncio.create_task(self._prepare(), name="job-ahead")

    async def replay(self, until: Mapping[str, Positions]) -> Ready | None:
        """The next rows before `until`; None when all of them were handed on."""
        portion = await self._inputs.replay(until)
        self.positions = self._inputs.positions
        return None if portion is None else Ready(portion, self.pieces(portion))

    def pieces(self, portion: Portion) -> Pieces:
        return [(name, batch) for stream, batch in portion.runs for name in self._names[stream]]

    async def close(self) -> None:
        """Drop what was made ready: it was not handed on, so it will be read again."""
        if self._next is not None:
            task, self._next = self._next, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._inputs.close()

    async def _prepare(self) -> Ready | None:
        portion = await self._inputs.take(wait_s=0.0, linger_s=0.0)
        if portion is None:
            return None
        return await asyncio.to_thread(self._decoded, portion)

    def _decoded(self, portion: Portion) -> Ready:
        pieces: Pieces = []
        for stream, batch in portion.runs:
            pieces += [(name, self._decode(name, batch)) for name in self._names[stream]]
        return Ready(portion, pieces)
