"""Twins over MQTT: requests and answers share topics with no identity in them, and a request id ties them together.

The request id is the device's own text and goes back byte for byte.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.core.errors import DataError

GET = b"$iothub/twin/GET/"
REPORT = b"$iothub/twin/PATCH/properties/reported/"
VERSION_DIGITS_MAX = 18


class TwinGet(NamedTuple):
    rid: bytes


class TwinReport(NamedTuple):
    rid: bytes
    base_version: int | None  # what `reported` must be at; None for whatever


class BadTwinRequest(DataError):
    """A twin topic whose parameters make no sense. `rid` is what to answer under."""

    code = "twin.topic"

    def __init__(self, message: str, rid: bytes) -> None:
        super().__init__(message, hint="publish to $iothub/twin/GET/?$rid={request id}")
        self.rid = rid


def parse_request(topic: bytes) -> TwinGet | TwinReport | None:
    """A device's request, None for a topic that is none. Raises BadTwinRequest."""
    for start in (GET, REPORT):
        if topic.startswith(start) or topic == start[:-1]:
            fields = parameters(topic[len(start) :])
            rid = fields.get(b"$rid", b"")
            if not rid:
                raise BadTwinRequest("a twin request without $rid", rid)
            if start is GET:
                return TwinGet(rid)
            version = fields.get(b"$version")
            if version is not None and not (version.isdigit() and len(version) <= VERSION_DIGITS_MAX):
                raise BadTwinRequest("$version of a twin request is no number", rid)
            return TwinReport(rid, None if version is None else int(version))
    return None


def answer_topic(status: int, rid: bytes, version: int | None = None) -> bytes:
    suffix = b"" if version is None else b"&$version=%d" % version
    return b"$iothub/twin/res/%d/?$rid=%b%b" % (status, rid, suffix)


def desired_topic(version: int) -> bytes:
    return b"$iothub/twin/PATCH/properties/desired/?$version=%d" % version


def parameters(text: bytes) -> dict[bytes, bytes]:
    """`?key=value&key=value`, not decoded; the last of two wins."""
    found: dict[bytes, bytes] = {}
    for part in text.removeprefix(b"?").split(b"&"):
        key, _, value = part.partition(b"=")
        found[key] = value
    return found
