"""Which resendable event ids a stream took in lately: 24 bytes an id, exact.

Ids live in sorted runs that are merged like those of a log-structured tree, never across a quarter of the window, so that
forgetting the oldest quarter is dropping whole runs. An id is its 128 bits (`m` and 32 hexadecimal digits are that
already; other texts are hashed to as many), so a hit needs no second look at the stored row.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.identity import RESENDABLE

Keys: TypeAlias = np.ndarray[Any, np.dtype[np.uint64]]
"""128-bit keys as two words each: shape (n, 2)."""
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Stamps: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_DERIVED = re.compile(rb"m[0-9a-f]{32}")
_GROWTH = 4  # a run is merged into the one before it unless that one is this many times longer


class _Run(NamedTuple):
    high: Keys  # sorted, shape (n,)
    low: Keys  # shape (n,)
    at: Stamps  # shape (n,)
    oldest: int
    newest: int


class RecentIds:
    """The ids stored during the last `window` ticks. Adding is O(log n) amortised, asking O(log² n) an id."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.high) for run in self._runs)

    @property
    def nbytes(self) -> int:
        return sum(run.high.nbytes + run.low.nbytes + run.at.nbytes for run in self._runs)

    def duplicates(self, keys: Keys, at: int) -> Mask:
        """Which of `keys` were stored within the window that ends at `at`, or come a second time in `keys`; shape (n,)."""
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal keys stays first
        high, low = keys[order, 0], keys[order, 1]
        found = np.zeros(len(keys), dtype=np.bool_)
        found[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        for run in self._runs:
            if run.newest >= at - self.window:
                found |= _contains(run, high, low, at - self.window)
        answer = np.empty_like(found)
        answer[order] = found
        return answer

    def add(self, keys: Keys, at: Stamps) -> None:
        """Remember `keys` as stored at the stamps `at`, shape (n,), rising, none before those of earlier calls."""
        if not len(keys):
            return
        oldest, newest = int(at[0]), int(at[-1])
        while self._runs and self._runs[0].newest < newest - self.window:
            del self._runs[0]
        order = np.argsort(keys[:, 0], kind="stable")
        run = _Run(keys[order, 0], keys[order, 1], at[order], oldest, newest)
        while self._runs and self._mergeable(self._runs[-1], run):
            run = _merged(self._runs.pop(), run)
        self._runs.append(run)

    def _mergeable(self, before: _Run, run: _Run) -> bool:
        return len(before.high) <= _GROWTH * len(run.high) and run.newest - before.oldest <= self.window // 4


def _contains(run: _Run, high: Keys, low: Keys, since: int) -> Mask:
    """Which of the sorted keys a run holds, stored at `since` or later; shape (n,)."""
    places = np.searchsorted(run.high, high)
    found = np.zeros(len(high), dtype=np.bool_)
    asking = np.flatnonzero(run.high[np.minimum(places, len(run.high) - 1)] == high)
    places = places[asking]
    while len(asking):  # one turn, unless two ids share 64 bits or one id was stored twice
        hit = (run.low[places] == low[asking]) & (run.at[places] >= since)
        found[asking[hit]] = True
        places, asking = places[~hit] + 1, asking[~hit]
        same = (places < len(run.high)) & (run.high[np.minimum(places, len(run.high) - 1)] == high[asking])
        places, asking = places[same], asking[same]
    return found


def _merged(one: _Run, other: _Run) -> _Run:
    high = np.concatenate((one.high, other.high))
    order = np.argsort(high, kind="stable")  # timsort: two sorted runs are merged, not sorted
    low, at = np.concatenate((one.low, other.low)), np.concatenate((one.at, other.at))
    return _Run(high[order], low[order], at[order], min(one.oldest, other.oldest), max(one.newest, other.newest))


def resendable(ids: pa.Array) -> tuple[Mask, Keys]:
    """Which of the event ids are resendable (start with `m`), shape (n,), and the keys of those, shape (k, 2)."""
    mask = pc.starts_with(ids, RESENDABLE)
    count = mask.true_count
    if count == 0:
        return np.zeros(len(ids), dtype=np.bool_), np.empty((0, 2), dtype=np.uint64)
    chosen = ids if count == len(ids) else ids.filter(mask)
    return mask.to_numpy(zero_copy_only=False), _keys(chosen)


def _keys(ids: pa.Array) -> Keys:
    offsets = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if np.all(np.diff(offsets) == 33):
        text = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 33)[:, 1:]
        if not np.any((text & 0x60) == 0x40):  # a capital letter: another id than the same in small letters
            with suppress(ValueError):
                return np.frombuffer(binascii.unhexlify(text.tobytes()), dtype=np.uint64).reshape(-1, 2)
    return np.frombuffer(b"".join(map(_key, ids.cast(pa.binary()).to_pylist())), dtype=np.uint64).reshape(-1, 2)


def _key(text: bytes) -> bytes:
    if _DERIVED.fullmatch(text):
        return bytes.fromhex(text[1:].decode())
    return hashlib.blake2b(text, digest_size=16).digest()
