"""Adding up ledger entries.

A sum's offsets span from the first to the last, so an epoch that was never written shows as rows that came in and went
nowhere, and an epoch that was done twice under two numbers as more rows out than in: both unbalance the books.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import reduce

from headrace.core.flow import LedgerEntry


def add(one: LedgerEntry, other: LedgerEntry) -> LedgerEntry:
    """The sum of two entries of the same stage, stream and partition; `epoch` is the later one."""
    return one._replace(
        epoch=max(one.epoch, other.epoch),
        offset_from=min(one.offset_from, other.offset_from),
        offset_to=max(one.offset_to, other.offset_to),
        rows_out=one.rows_out + other.rows_out,
        set_aside=dict(sorted((Counter(one.set_aside) + Counter(other.set_aside)).items())),
    )


def total(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """One entry per (stage, stream, partition), in that order."""
    groups: dict[tuple[str, str, int], list[LedgerEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.stage, entry.stream, entry.partition), []).append(entry)
    return [reduce(add, groups[key]) for key in sorted(groups)]


def missing(entry: LedgerEntry) -> int:
    """Rows that came in and were neither put out nor set aside. 0 is balanced; below 0 rows were made from nothing."""
    return entry.rows_in - entry.rows_out - sum(entry.set_aside.values())
