"""Text functions. Positions count from 1. Numbers given as text print as by CAST."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow.compute as pc

from headrace.sql.convert import fits, integer, text
from headrace.sql.errors import Fault
from headrace.sql.functions.ecmascript import ecmascript
from headrace.sql.spec import Scalar
from headrace.sql.values import TEXT

_SPACE = "".join(chr(code) for code in range(0x3001) if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp"))
_SPACE += "\t\n\x0b\x0c\r\x85"
PATTERN_MAX = 8000


def _count(value: Any, name: str) -> int:
    found = integer(value)
    if found < 0:
        raise Fault(f"{name} with a negative length ({found})")
    return found


def _left(value: Any, length: Any) -> str:
    return text(value)[: _count(length, "LEFT")]


def _right(value: Any, length: Any) -> str:
    found, count = text(value), _count(length, "RIGHT")
    return found[-count:] if count else ""


def _substring(value: Any, start: Any, length: Any) -> str:
    found, first, count = text(value), integer(start), _count(length, "SUBSTRING")
    if first < 1:
        return found[: max(first + count - 1, 0)]
    return found[first - 1 : first - 1 + count]


def _stuff(value: Any, start: Any, length: Any, insert: Any) -> str:
    found, first, count = text(value), max(integer(start), 1), _count(length, "STUFF")
    if first > len(found):
        return ""
    return found[: first - 1] + text(insert) + found[first - 1 + count :]


def _charindex(find: Any, value: Any, start: Any = 1) -> int:
    return text(value).find(text(find), max(integer(start), 1) - 1) + 1


@lru_cache(maxsize=512)
def like_pattern(pattern: str, *, search: bool = False) -> re.Pattern[str]:
    """A LIKE pattern (`%`, `_`, `[...]`, `[^...]`) as a regular expression for `fullmatch`, or `search` for PATINDEX."""
    if len(pattern) > PATTERN_MAX:
        raise Fault(f"the pattern has {len(pattern)} characters, at most {PATTERN_MAX} are read")
    anchored_start, anchored_end = True, True
    if search:
        anchored_start, anchored_end = not pattern.startswith("%"), not pattern.endswith("%")
        pattern = pattern.strip("%") if not (anchored_start or anchored_end) else pattern
        pattern = pattern.lstrip("%") if not anchored_start else pattern
        pattern = pattern.rstrip("%") if not anchored_end else pattern
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        closing = pattern.find("]", at + 2) if char == "[" else -1
        if char == "%":
            if not out or out[-1] != ".*":
                out.append(".*")
        elif char == "_":
            out.append(".")
        elif closing > 0:
            inside = pattern[at + 1 : closing]
            negated = "^" if inside.startswith("^") and len(inside) > 1 else ""
            members = inside[1:] if negated else inside
            out.append(f"[{negated}{_members(members)}]")
            at = closing
        else:
            out.append(re.escape(char))
        at += 1
    body = "".join(out)
    if search:
        body = ("^" if anchored_start else "") + body + (r"\Z" if anchored_end else "")
    try:
        return re.compile(body, re.DOTALL)
    except re.error as exc:
        raise Fault(f"{pattern[:40]!r} is not a pattern: {exc}") from exc


def _members(members: str) -> str:
    """The inside of a set, where only a dash between two characters is special."""
    return "".join(char if char == "-" else re.escape(char) for char in members)


def _patindex(pattern: Any, value: Any) -> int:
    found = like_pattern(text(pattern), search=True).search(text(value))
    return found.start() + 1 if found else 0


def _regexmatch(value: Any, pattern: Any) -> int:
    try:
        found = ecmascript(text(pattern)).search(text(value))
    except re.error:
        return 0
    return found.start() + 1 if found else 0


def _concat(*parts: Any) -> str:
    return "".join(text(part) for part in parts if part is not None)


def _concat_ws(separator: Any, *parts: Any) -> str | None:
    joint = "" if separator is None else text(separator)
    return joint.join(text(part) for part in parts if part is not None)


def _replace(value: Any, find: Any, by: Any) -> str:
    return text(value).replace(text(find), text(by)) if text(find) else text(value)


def _translate(value: Any, source: Any, target: Any) -> str:
    if len(text(source)) != len(text(target)):
        raise Fault(f"TRANSLATE needs lists of equal length, not {len(text(source))} and {len(text(target))}")
    table: dict[str, str] = {}
    for old, new in zip(text(source), text(target), strict=True):
        table.setdefault(old, new)
    return "".join(table.get(char, char) for char in text(value))


def _replicate(value: Any, count: Any) -> str | None:
    times = integer(count)
    if times * max(len(text(value)), 1) > 1 << 24:
        raise Fault(f"REPLICATE to {times * len(text(value)):,} characters, at most {1 << 24:,}")
    return None if times < 0 else text(value) * times


def _nchar(code: Any) -> str | None:
    found = integer(code)
    return chr(found) if 0 <= found <= 1_114_111 and not 0xD800 <= found <= 0xDFFF else None


def _unicode(value: Any) -> int | None:
    return ord(text(value)[0]) if text(value) else None


def _json_parse(value: Any) -> Any:
    if type(value) is not str:
        return None
    try:
        found = msgspec.json.decode(value.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return found if type(found) is dict and fits(found) else None


LEN = Scalar("len", 1, 1, lambda value: len(text(value).rstrip(" ")), doc="Characters without trailing blanks.")
LEFT = Scalar("left", 2, 2, _left)
RIGHT = Scalar("right", 2, 2, _right)
SUBSTRING = Scalar("substring", 3, 3, _substring)
STUFF = Scalar("stuff", 4, 4, _stuff)
CHARINDEX = Scalar("charindex", 2, 3, _charindex)
PATINDEX = Scalar("patindex", 2, 2, _patindex)
REGEXMATCH = Scalar("regexmatch", 2, 2, _regexmatch)
CONCAT = Scalar("concat", 2, -1, _concat, nulls=True)
CONCAT_WS = Scalar("concat_ws", 3, -1, _concat_ws, nulls=True)
REPLACE = Scalar("replace", 3, 3, _replace)
TRANSLATE = Scalar("translate", 3, 3, _translate)
TRIM = Scalar("trim", 1, 1, lambda value: text(value).strip(_SPACE))
LTRIM = Scalar("ltrim", 1, 1, lambda value: text(value).lstrip(_SPACE))
RTRIM = Scalar("rtrim", 1, 1, lambda value: text(value).rstrip(_SPACE))
REPLICATE = Scalar("replicate", 2, 2, _replicate)
SPACE = Scalar("space", 1, 1, lambda count: _replicate(" ", count))
NCHAR = Scalar("nchar", 1, 1, _nchar)
UNICODE = Scalar("unicode", 1, 1, _unicode)
UPPER = Scalar("upper", 1, 1, lambda value: text(value).upper())
LOWER = Scalar("lower", 1, 1, lambda value: text(value).lower())
REVERSE = Scalar(
    "reverse", 1, 1, lambda value: text(value)[::-1], {(TEXT,): (TEXT, lambda data: pc.utf8_reverse(data))}
)
JSON_PARSE = Scalar(
    "json_parse", 1, 1, _json_parse, doc="The record in a JSON object's text; anything else gives null."
)
