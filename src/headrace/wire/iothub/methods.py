"""Direct methods over MQTT: the hub publishes a question, the device publishes its answer with a status."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from headrace.wire.iothub.twin import parameters

ANSWER = b"$iothub/methods/res/"
STATUS_MAX = 2**31 - 1


class MethodAnswer(NamedTuple):
    rid: str
    status: int


def question_topic(name: str, rid: str) -> bytes:
    """Where a method's payload goes; the name is percent-encoded, for it may hold a slash."""
    return f"$iothub/methods/POST/{quote(name, safe='')}/?$rid={rid}".encode()


def parse_answer(topic: bytes) -> MethodAnswer | None:
    """`$iothub/methods/res/{status}/?$rid={rid}`; None for a topic that is no answer."""
    if not topic.startswith(ANSWER):
        return None
    status, _, rest = topic[len(ANSWER) :].partition(b"/")
    digits = status.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 10 or int(digits) > STATUS_MAX:
        return None
    rid = parameters(rest).get(b"$rid", b"")
    return MethodAnswer(rid.decode("ascii", "replace"), int(status)) if rid else None
