"""Comparing the rows of a case with the expected ones, and saying in what they differ.

Numbers agree within a relative tolerance, datetimes with ISO text of the same instant, an absent column with null.
Matching is greedy: the first equal row that is left. Equality within a tolerance is not transitive, but rows that close
to one another are not told apart by any case worth writing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.core.clock import to_iso
from headrace.sql.moments import Moment, parse_moment

Record = dict[str, Any]
ROWS_SHOWN = 10
_PAIRING_MAX = 200  # rows on either side among which the most similar one is looked for


class Comparison(NamedTuple):
    """How the rows of a case compare, as its keys say."""

    tolerance: float = 1e-9
    unordered_arrays: bool = False
    subset: bool = False
    ordered: bool = False


def same(got: Any, want: Any, how: Comparison) -> bool:
    """Whether a value is the expected one."""
    if isinstance(got, Moment):
        return isinstance(want, str) and parse_moment(want) == got.ticks
    if isinstance(got, bool | int | float) and isinstance(want, bool | int | float):
        return got == want or abs(got - want) <= how.tolerance * max(1, abs(got), abs(want))
    if isinstance(got, dict) and isinstance(want, dict):
        return all(same(got.get(name), want.get(name), how) for name in got.keys() | want.keys())
    if isinstance(got, list) and isinstance(want, list):
        if len(got) != len(want):
            return False
        if how.unordered_arrays:
            missing, unexpected = unmatched(got, want, how)
            return not missing and not unexpected
        return all(same(one, other, how) for one, other in zip(got, want, strict=True))
    return type(got) is type(want) and bool(got == want)


def unmatched(got: Sequence[Any], want: Sequence[Any], how: Comparison) -> tuple[list[Any], list[Any]]:
    """(expected but missing, unexpected), compared as multisets."""
    left = list(want)
    unexpected: list[Any] = []
    for value in got:
        at = next((index for index, other in enumerate(left) if same(value, other, how)), None)
        if at is None:
            unexpected.append(value)
        else:
            del left[at]
    return left, unexpected


def difference(output: str, got: Sequence[Record], want: Sequence[Record], how: Comparison) -> str:
    """Empty where the rows of an output are the expected ones, else what is wrong, for people."""
    if how.subset:
        names = list(dict.fromkeys(name for row in want for name in row))
        got = [{name: row.get(name) for name in names} for row in got] if want else got
    missing, unexpected = unmatched(got, want, how)
    if missing or unexpected:
        return _rows_differ(output, missing, unexpected, (len(got), len(want)), how)
    if not how.ordered:
        return ""
    at = next((index for index, pair in enumerate(zip(got, want, strict=True)) if not same(*pair, how)), None)
    if at is None:
        return ""
    return (
        f"output {output}: the rows are right, their order is not; first at row {at + 1}\n"
        f"  - {written(want[at])}\n  + {written(got[at])}"
    )


def _rows_differ(
    output: str, missing: list[Record], unexpected: list[Record], counts: tuple[int, int], how: Comparison
) -> str:
    head = (
        f"output {output}: {len(missing)} missing, {len(unexpected)} unexpected (got {counts[0]}, expected {counts[1]})"
    )
    lines = [head]
    left = list(unexpected)
    for want in missing[:ROWS_SHOWN]:
        lines.append(f"  - {written(want)}")
        twin = _most_alike(want, left[:_PAIRING_MAX], how)
        if twin is not None:
            left = [row for row in left if row is not twin]
            lines += [f"  + {written(twin)}", f"      {first_difference(twin, want, how)}"]
    lines += [f"  + {written(row)}" for row in left[: max(0, ROWS_SHOWN - len(missing))]]
    shown = sum(line.startswith(("  - ", "  + ")) for line in lines)
    hidden = len(missing) + len(unexpected) - shown
    return "\n".join([*lines, *([f"  … and {hidden} more rows"] if hidden else [])])


def _most_alike(want: Record, rows: Sequence[Record], how: Comparison) -> Record | None:
    """The row with the most columns in common, if any column that holds something is equal, or if it is the only one."""

    def alike(row: Record) -> int:
        return sum(row.get(name) is not None and same(row.get(name), value, how) for name, value in want.items())

    best = max(rows, key=alike, default=None)
    return best if best is not None and (alike(best) or len(rows) == 1) else None


def first_difference(got: Record, want: Record, how: Comparison) -> str:
    """The first column, in the expected order, in which two rows differ."""
    for name in [*want, *(name for name in got if name not in want)]:
        if not same(got.get(name), want.get(name), how):
            one, other = got.get(name), want.get(name)
            text = f"differs first in {name}: expected {written(other)}, got {written(one)}"
            near = [known for known in got if known.lower() == name.lower() and known != name]
            if name not in got and near:
                text += f" (there is a column {near[0]})"
            elif written(one) == written(other) or isinstance(one, Moment):
                text += f" ({_kind(one)}, not {_kind(other)})"
            return text
    return "equal"


def _kind(value: Any) -> str:
    kinds = {bool: "bit", int: "bigint", float: "float", str: "text", dict: "record", list: "array", Moment: "datetime"}
    return kinds.get(type(value), "null")


def plain(value: Any) -> Any:
    """A value as JSON has it: datetimes as ISO text."""
    if isinstance(value, Moment):
        return to_iso(value.ticks)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def written(value: Any, *, width_max: int = 300) -> str:
    text = json.dumps(plain(value), ensure_ascii=False, default=str)
    return text if len(text) <= width_max else text[:width_max] + "…"
