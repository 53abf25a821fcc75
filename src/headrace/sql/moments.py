"""Text to time, and time to text, for a whole column at once.

ISO 8601 in its usual shapes is read digit by digit over Arrow's bytes, by the compiled parser where there is one (about
0.02 us a value) or with NumPy; whatever does not look exactly so goes through `core.clock.from_iso`, one value at a time,
and that decides.
"""

from __future__ import annotations

from functools import total_ordering
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.core.clock import TICKS_PER_S, from_iso, to_iso
from headrace.core.errors import UserError
from headrace.sql import native

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_TEMPLATE = {4: 45, 7: 45, 13: 58, 16: 58}  # - - : :
_DIGITS = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]

_DAY = 86_400 * TICKS_PER_S
_FEW = 16  # values that are written sooner one by one
_SIZE = len("2025-01-01T00:00:00.0000000Z")
_TWO_DIGITS = np.frombuffer("".join(f"{number:02d}" for number in range(100)).encode(), np.uint16)
_PAIRS = np.dtype(
    {
        "names": ["hour", "minute", "second", "first", "middle", "last"],
        "formats": [np.uint16] * 6,
        "offsets": [11, 14, 17, 20, 22, 24],
        "itemsize": _SIZE,
    }
)
"""Where the pairs of digits stand in a text."""


@total_ordering
class Moment:
    """A datetime value: ticks of 100 ns since 1970, UTC. A plain class: encoders must ask us how to write it."""

    __slots__ = ("ticks",)

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moment) and self.ticks == other.ticks

    def __lt__(self, other: Moment) -> bool:
        return self.ticks < other.ticks

    def __hash__(self) -> int:
        return hash(("moment", self.ticks))

    def __repr__(self) -> str:
        return f"Moment({self})"

    def __str__(self) -> str:
        return to_iso(self.ticks)


def days_from_civil(year: Any, month: Any, day: Any) -> Any:
    """Days since 1970-01-01 in the proleptic Gregorian calendar (arrays or numbers), years from 1 on.

    Counts years from March, so that the leap day ends a year; the arithmetic of Richards, Explanatory Supplement to the
    Astronomical Almanac (2013), section 15.11.
    """
    shifted = year - (month <= 2)
    month_from_march = (month + 9) % 12
    day_of_year = (153 * month_from_march + 2) // 5 + day - 1
    return shifted * 365 + shifted // 4 - shifted // 100 + shifted // 400 + day_of_year - 719_468


def parse_moment(text: str) -> int | None:
    """Ticks of one ISO 8601 text, or None."""
    try:
        return from_iso(text)
    except (UserError, OverflowError):
        return None


def parse_moments(texts: pa.StringArray, *, compiled: bool = True) -> tuple[Ints, Bools]:
    """Ticks per text and whether it was a time. Null texts are not."""
    library = native.library() if compiled and not texts.null_count else None
    ticks, good = library.moments(texts) if library is not None and len(texts) else _read_blocks(texts)
    if good.all():
        return ticks, good
    for row in np.flatnonzero(~good).tolist():
        text = texts[row].as_py()
        slow = parse_moment(text) if text else None
        if slow is not None:
            ticks[row] = slow
            good[row] = True
    return ticks, good


def _read_blocks(texts: pa.StringArray) -> tuple[Ints, Bools]:
    """Ticks of texts, and which of them had a shape read here."""
    rows = len(texts)
    ticks: Ints = np.zeros(rows, np.int64)
    good: Bools = np.zeros(rows, np.bool_)
    if rows == 0:
        return ticks, good
    data = texts.buffers()[2]
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + rows + 1]
    lengths = np.diff(offsets)
    if texts.null_count:
        lengths = np.where(np.asarray(pc.is_valid(texts)), lengths, 0)
    bytes_ = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    longest, shortest = int(lengths.max()), int(lengths.min())
    sizes = [longest] if longest == shortest else [int(size) for size in np.unique(lengths)]
    for size in sizes:
        if not 19 <= size <= 35:
            continue
        at = np.flatnonzero(lengths == size) if len(sizes) > 1 else np.arange(rows)
        if len(sizes) == 1 and int(offsets[-1]) - int(offsets[0]) == rows * size:
            block = bytes_[int(offsets[0]) : int(offsets[-1])].reshape(rows, size)
        else:
            block = bytes_[offsets[:-1][at][:, None] + np.arange(size)]
        found, fits = _read_block(block)
        ticks[at] = np.where(fits, found, 0)
        good[at] = fits
    return ticks, good


def _read_block(block: npt.NDArray[np.uint8]) -> tuple[Ints, Bools]:
    """Texts of one length, as bytes (n, length): ticks, and which of them had a shape read here."""
    rows, size = block.shape
    columns = np.ascontiguousarray(block.T)
    digits = columns[_DIGITS].astype(np.int64) - 48
    fits = ((digits >= 0) & (digits <= 9)).all(axis=0)
    for position, mark in _TEMPLATE.items():
        fits &= columns[position] == mark
    fits &= (columns[10] == 84) | (columns[10] == 32)
    year = ((digits[0] * 10 + digits[1]) * 10 + digits[2]) * 10 + digits[3]
    month, day = digits[4] * 10 + digits[5], digits[6] * 10 + digits[7]
    hour, minute, second = digits[8] * 10 + digits[9], digits[10] * 10 + digits[11], digits[12] * 10 + digits[13]
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    month_days = _MONTH_DAYS[np.where(fits, np.clip(month, 0, 12), 0)] + (leap & (month == 2))
    fits &= (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= month_days)
    fits &= (hour <= 23) & (minute <= 59) & (second <= 59)
    tail, shift, zoned = _read_zone(columns, size)
    fits &= zoned
    fraction: Ints = np.zeros(rows, np.int64)
    if tail > 19:
        fits &= (columns[19] == 46) if tail > 20 else False
        scale = TICKS_PER_S
        for position in range(20, tail):
            digit = columns[position].astype(np.int64) - 48
            fits &= (digit >= 0) & (digit <= 9)
            scale //= 10
            fraction += digit * scale
    seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - shift
    return seconds * TICKS_PER_S + fraction, fits


def _read_zone(columns: npt.NDArray[np.uint8], size: int) -> tuple[int, Ints | int, Bools]:
    """Where the zone begins, its shift in seconds, and which texts have such a zone. Judged by the first text."""
    last = columns[size - 1]
    if last[0] == 90:  # Z
        return size - 1, 0, last == 90
    if size >= 25 and columns[size - 6][0] in (43, 45) and columns[size - 3][0] == 58:
        sign = columns[size - 6]
        digits = columns[[size - 5, size - 4, size - 2, size - 1]].astype(np.int64) - 48
        good = ((sign == 43) | (sign == 45)) & (columns[size - 3] == 58) & ((digits >= 0) & (digits <= 9)).all(axis=0)
        hours, minutes = digits[0] * 10 + digits[1], digits[2] * 10 + digits[3]
        good &= (hours <= 23) & (minutes <= 59)
        return size - 6, np.where(sign == 45, -1, 1) * (hours * 3600 + minutes * 60), good
    return size, 0, (last >= 48) & (last <= 57)


def moments_text(ticks: Ints) -> list[str]:
    """ISO 8601 text per value, seven decimals and Z. Equal neighbours (window ends) are written once."""
    rows = len(ticks)
    if rows < _FEW:
        return [to_iso(value) for value in ticks.tolist()]
    heads = np.flatnonzero(np.concatenate(([True], ticks[1:] != ticks[:-1])))
    written = _write_distinct(ticks[heads]) if len(heads) > _FEW else [to_iso(value) for value in ticks[heads].tolist()]
    if len(heads) == rows:
        return written
    out: list[str] = np.array(written, object).repeat(np.diff(np.append(heads, rows))).tolist()
    return out


def _write_distinct(ticks: Ints) -> list[str]:
    """`to_iso` of each, digit pairs taken from a table. Days are written one by one: there are few of them."""
    day, rest = np.divmod(ticks, _DAY)
    days, which = np.unique(day, return_inverse=True)
    heads = "".join(to_iso(value * _DAY) for value in days.tolist())
    block = np.frombuffer(heads.encode(), f"S{_SIZE}")[which]
    second, fraction = np.divmod(rest, TICKS_PER_S)
    pairs = block.view(_PAIRS)
    pairs["hour"] = _TWO_DIGITS[second // 3600]
    pairs["minute"] = _TWO_DIGITS[second // 60 % 60]
    pairs["second"] = _TWO_DIGITS[second % 60]
    whole = block.view(np.uint8).reshape(len(ticks), _SIZE)
    for name, scale in (("first", 100_000), ("middle", 1000), ("last", 10)):
        pairs[name] = _TWO_DIGITS[fraction // scale % 100]
    whole[:, _SIZE - 2] = fraction % 10 + 48
    found = block.tobytes().decode("ascii")
    return [found[at : at + _SIZE] for at in range(0, len(found), _SIZE)]
