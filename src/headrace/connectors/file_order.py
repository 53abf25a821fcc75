"""The order in which the rows of files are sent: as they stand, or by their time.

By time all files play at once, as their devices did: engines that a file lists one after the other run side by side. For
that every row is held in memory, so it is done for BY_TIME_ROWS_MAX rows at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from headrace.connectors.files import FileRows, Rows
from headrace.core.clock import TICKS_PER_S

BY_TIME_ROWS_MAX = 500_000


class Chunk(NamedTuple):
    """Consecutive rows in the order of sending, with the index of the file that each is from."""

    files: list[int]
    rows: Rows

    def take(self, places: Sequence[int]) -> Chunk:
        columns: Sequence[list[Any]] = self.rows
        return Chunk([self.files[at] for at in places], Rows(*([column[at] for at in places] for column in columns)))


class Pace(NamedTuple):
    """How fast to play: so many times faster than recorded, no pause longer than `pause_max_s`."""

    speed: float
    pause_max_s: float


def as_they_stand(files: Sequence[FileRows], *, rows_max: int) -> Iterator[Chunk]:
    for index, file in enumerate(files):
        for rows in file.batches(rows_max=rows_max):
            yield Chunk([index] * len(rows.rows), rows)


def by_time(files: Sequence[FileRows], *, rows_max: int) -> Iterator[Chunk]:
    """All rows of all files, earliest first; rows without a time go with the one before them in their file."""
    chunks = list(as_they_stand(files, rows_max=rows_max))
    owners = [owner for chunk in chunks for owner in chunk.files]
    columns: list[list[Any]] = [
        list(chain.from_iterable(parts)) for parts in zip(*(c.rows for c in chunks), strict=True)
    ]
    del chunks
    order = np.argsort(_filled(columns[1], owners), kind="stable").tolist()
    for low in range(0, len(order), rows_max):
        picked = order[low : low + rows_max]
        yield Chunk([owners[at] for at in picked], Rows(*([column[at] for at in picked] for column in columns)))


def pace_for(files: Sequence[FileRows], *, play_s: float) -> Pace | None:
    """The pace at which all rows take about `play_s` seconds; long pauses are shortened. None where rows tell no time.

    A pause counts as long above 20 times the usual step from one row's time to the next.
    """
    times = np.array([time for file in files for rows in file.batches() for time in rows.times if time is not None])
    steps = np.diff(np.unique(times)) / TICKS_PER_S
    if not len(steps):
        return None
    long_s = 20 * float(np.median(steps))
    speed = float(np.minimum(steps, long_s).sum()) / play_s
    return Pace(speed, long_s / speed)


def _filled(times: Sequence[int | None], owners: Sequence[int]) -> list[int]:
    filled: list[int] = []
    last, last_owner = 0, -1
    for time, owner in zip(times, owners, strict=True):
        if owner != last_owner:
            last, last_owner = 0, owner
        last = last if time is None else time
        filled.append(last)
    return filled
