"""Keys with state as small numbers, so that the state itself can live in arrays.

A number is used again once its key is forgotten; nothing that an operator reports may depend on which number a key has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from headrace.sql.keys import Key, Keys
from headrace.sql.state import hashable, pack, thawed, unpack
from headrace.sql.values import Bools, Ints


class KeyIds:
    """A number for each key with state. Numbers lie in 0..`room` - 1."""

    def __init__(self) -> None:
        self._of: dict[Any, int] = {}  # keys of one part are looked up by that part
        self._keys: list[Any] = []  # by number; the keys of free numbers are None
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._of)

    @property
    def room(self) -> int:
        return len(self._keys)

    def find(self, keys: Sequence[Key]) -> Ints:
        """The number of each key, -1 for one without."""
        return self._found(_plain(keys), len(keys))

    def _found(self, plain: Iterable[Any], count: int) -> Ints:
        return np.fromiter(map(self._of.get, plain, repeat(-1)), np.int64, count)

    def number(self, keys: Sequence[Key]) -> Ints:
        """The number of each of some distinct keys; those without get one."""
        plain = _plain(keys)
        ids = self._found(plain, len(keys))
        new = np.flatnonzero(ids < 0)
        if len(new):
            made = [self._add(plain[at]) for at in new.tolist()]
            ids[new] = made
        return ids

    def _add(self, key: Any) -> int:
        if self._free:
            number = self._free.pop()
            self._keys[number] = key
        else:
            number = len(self._keys)
            self._keys.append(key)
        self._of[key] = number
        return number

    def forget(self, ids: Ints) -> None:
        """Keys that have no state any more."""
        for number in ids.tolist():
            del self._of[self._keys[number]]
            self._keys[number] = None
        self._free += ids[::-1].tolist()

    def keys(self, ids: Ints) -> Keys:
        """The keys behind numbers, in that order."""
        found = [self._keys[number] for number in ids.tolist()]
        if not found or type(found[0]) is not tuple:
            return Keys([found], len(found))
        return Keys([list(part) for part in zip(*found, strict=True)], len(found))

    def live(self) -> Ints:
        """The numbers in use, in the order in which their keys came."""
        return np.fromiter(self._of.values(), np.int64, len(self._of))

    def used(self, ids: Ints) -> Bools:
        """Which numbers, all below `room`, have a key."""
        found: Bools = np.ones(self.room, np.bool_)
        found[self._free] = False
        return found[ids]

    def packed(self, ids: Ints) -> list[bytes]:
        """Keys as bytes, for a snapshot."""
        known: dict[int, bytes] = {}
        out: list[bytes] = []
        for number in ids.tolist():
            data = known.get(number)
            if data is None:
                key = self._keys[number]
                parts = key if type(key) is tuple else (key,)
                data = known[number] = pack([thawed(part) for part in parts])
            out.append(data)
        return out

    def restore(self, packed: Iterable[bytes]) -> Ints:
        """Start anew from packed keys, equal ones in any number; returns the number of each."""
        self.__init__()  # type: ignore[misc]
        known: dict[bytes, int] = {}
        out: list[int] = []
        for data in packed:
            number = known.get(data)
            if number is None:
                key = tuple(hashable(part) for part in unpack(data))
                number = known[data] = self._add(key[0] if len(key) == 1 else key)
            out.append(number)
        return np.array(out, np.int64)


def _plain(keys: Sequence[Key]) -> list[Any]:
    if isinstance(keys, Keys) and len(keys.columns) == 1:
        return keys.columns[0]
    return [key[0] if len(key) == 1 else key for key in keys]
