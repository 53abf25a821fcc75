"""Topic names and topic filters (MQTT 5.0 section 4.7; the rules of 3.1.1 are the same).

Names and filters are bytes here, because they come and go as bytes. `$` topics match no filter that begins with a wildcard.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from headrace.wire.mqtt.reasons import malformed, protocol_error

SHARE = b"$share/"
LEVELS_MAX = 200
"""Deeper filters are refused: each level is a node in memory for as long as the subscription lives."""

_FORBIDDEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\ufdd0-\\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_FORBIDDEN_ASCII = re.compile(rb"[\x00-\x1f\x7f]")


class Filter(NamedTuple):
    """A subscription's filter: `group` is the share name, empty when it is not shared."""

    group: bytes
    levels: tuple[bytes, ...]


def check_text(data: bytes, where: str) -> str:
    """UTF-8 text as both versions allow it: well formed, no surrogate, and (as they permit) no control character.

    Raises PacketRefused.
    """
    if data.isascii():
        if _FORBIDDEN_ASCII.search(data):
            raise malformed(f"{where}: a control character")
        return data.decode("ascii")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise malformed(f"{where}: not UTF-8 at byte {exc.start}") from exc
    if _FORBIDDEN.search(text):
        raise malformed(f"{where}: a control character or non-character")
    return text


def check_name(topic: bytes, where: str = "PUBLISH") -> None:
    """Raises PacketRefused unless `topic` may be published to: not empty, no wildcard, proper text."""
    if not topic:
        raise malformed(f"{where}: an empty topic")
    if b"+" in topic or b"#" in topic:
        raise malformed(f"{where}: a topic that holds + or #")
    check_text(topic, where)


def parse_filter(topic_filter: bytes, where: str = "SUBSCRIBE") -> Filter:
    """A filter taken apart. Raises PacketRefused where it is none."""
    if not topic_filter:
        raise malformed(f"{where}: an empty filter")
    check_text(topic_filter, where)
    levels = topic_filter.split(b"/")
    for index, level in enumerate(levels):
        if (b"+" in level or b"#" in level) and len(level) > 1:
            raise malformed(f"{where}: a wildcard beside other characters")
        if level == b"#" and index < len(levels) - 1:
            raise malformed(f"{where}: # before the last level")
    group = b""
    if topic_filter.startswith(SHARE) or topic_filter == b"$share":
        _, _, rest = topic_filter.partition(b"/")
        group, slash, topic_filter = rest.partition(b"/")
        if not group or not slash or not topic_filter or b"+" in group or b"#" in group:
            raise protocol_error(f"{where}: a shared subscription is $share/NAME/FILTER")
        levels = levels[2:]
    return Filter(group, tuple(levels))


def matches(levels: tuple[bytes, ...], topic: bytes) -> bool:
    """Whether a topic name matches a filter's levels.

    >>> matches((b"a", b"#"), b"a"), matches((b"+",), b"$SYS")
    (True, False)
    """
    if topic[:1] == b"$" and levels[0] in (b"+", b"#"):
        return False
    names = topic.split(b"/")
    for index, level in enumerate(levels):
        if level == b"#":
            return True
        if index >= len(names) or (level != b"+" and level != names[index]):
            return False
    return len(levels) == len(names)


def covers(allowed: tuple[bytes, ...], wanted: tuple[bytes, ...]) -> bool:
    """Whether every topic that `wanted` matches is matched by `allowed` too.

    >>> covers((b"a", b"#"), (b"a", b"+", b"c")), covers((b"a", b"+"), (b"a", b"#"))
    (True, False)
    """
    if wanted[0][:1] == b"$" and allowed[0] in (b"+", b"#"):
        return False
    for index, level in enumerate(allowed):
        if level == b"#":
            return True
        if index >= len(wanted) or wanted[index] == b"#":
            return False
        if level != b"+" and level != wanted[index]:
            return False
    return len(allowed) == len(wanted)
