"""What a twin's sections may hold and how patches change them: pure functions over JSON values.

A section is checked after it was merged, because a patch that is small and legal may still make it too large. Nothing here
changes its arguments; a merge shares what it did not touch.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

from headrace.core.errors import UserError

Json: TypeAlias = dict[str, Any]
SectionName: TypeAlias = Literal["tags", "desired", "reported"]

SIZE_BYTES_MAX: dict[SectionName, int] = {"tags": 8192, "desired": 32_768, "reported": 32_768}
DEPTH_MAX = 10
KEY_BYTES_MAX = 1024
TEXT_BYTES_MAX = 4096
INTEGER_MAX = 4_503_599_627_370_496
IGNORED_KEYS = frozenset({"$version", "$metadata"})
"""What a client may send back from a document that it read; it means nothing in a patch."""
NUMBER_BYTES, BOOLEAN_BYTES = 8, 4
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f.$ ]")


class TwinInvalid(UserError):
    """A section that breaks the rules: IoT Hub's 400004. `code` says which rule."""

    code = "twin.invalid"


def checked(patch: Any, section: SectionName) -> Json:
    """A patch, or a whole section, without `$version` and `$metadata`. Raises TwinInvalid; sizes are for `check_size`."""
    if not isinstance(patch, dict):
        raise _wrong(section, f"is {_named(patch)}, not an object", "object", hint="send a JSON object")
    kept = {key: value for key, value in patch.items() if key not in IGNORED_KEYS}
    _check_object(kept, section, 0)
    return kept


def check_size(values: Json, section: SectionName) -> None:
    """Raises TwinInvalid for a section that is too large."""
    size, limit = _size(values), SIZE_BYTES_MAX[section]
    if size > limit:
        raise _wrong(section, f"would hold {size:,} bytes, above {limit:,}", "size", hint="keep less in the twin")


def merge(values: Json, patch: Json) -> Json:
    """`patch` applied: objects merge, null deletes, all else replaces (RFC 7396)."""
    merged = dict(values)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            earlier = merged.get(key)
            merged[key] = merge(earlier if isinstance(earlier, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def stamp(metadata: Json, patch: Json, mark: Json) -> Json:
    """The metadata tree after `patch`: `mark` ($lastUpdated and the like) on every object and value that it touches."""
    stamped = {**metadata, **mark}
    for key, value in patch.items():
        if value is None:
            stamped.pop(key, None)
        elif isinstance(value, dict):
            stamped[key] = stamp(stamped.get(key, {}), value, mark)
        else:
            stamped[key] = dict(mark)
    return stamped


def replacement(values: Json, wanted: Json) -> Json:
    """The patch that tells a merging client to hold `wanted` instead of `values`: dropped top-level keys are null."""
    return {**wanted, **dict.fromkeys(values.keys() - wanted.keys())}


def without_nulls(values: Json) -> Json:
    """A section as it is kept when it is set as a whole."""
    return merge({}, values)


def _check_object(found: Json, section: SectionName, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise _wrong(section, f"is nested deeper than {DEPTH_MAX} objects", "depth", hint="flatten it")
    for key, value in found.items():
        if not key or _FORBIDDEN.search(key) or len(key.encode()) > KEY_BYTES_MAX:
            raise _wrong(
                section,
                f"has the key {key[:64]!r}",
                "key",
                hint=f"use 1 to {KEY_BYTES_MAX} bytes without control characters, '.', '$' and space",
            )
        _check_value(value, section, depth, key)


def _check_value(value: Any, section: SectionName, depth: int, key: str) -> None:
    if isinstance(value, dict):
        _check_object(value, section, depth + 1)
    elif isinstance(value, list):
        if depth >= DEPTH_MAX:
            raise _wrong(section, f"is nested deeper than {DEPTH_MAX} levels", "depth", hint="flatten it")
        for item in value:
            _check_value(item, section, depth + 1, key)
    elif isinstance(value, str):
        if len(value.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
            raise _wrong(
                section, f"has a text above {TEXT_BYTES_MAX:,} bytes under {key[:64]!r}", "text", hint="shorten it"
            )
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > INTEGER_MAX:
        raise _wrong(
            section, f"has an integer beyond ±{INTEGER_MAX} under {key[:64]!r}", "integer", hint="send it as a text"
        )


def _size(value: Any) -> int:
    """Bytes of keys and values."""
    if isinstance(value, dict):
        return sum(len(key.encode()) + _size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(_size(item) for item in value)
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bool):
        return BOOLEAN_BYTES
    return 0 if value is None else NUMBER_BYTES


def _named(value: Any) -> str:
    names = {list: "an array", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _wrong(section: SectionName, what: str, rule: str, *, hint: str) -> TwinInvalid:
    return TwinInvalid(f"the section {section!r} {what}", hint=hint, code=f"twin.{rule}")
