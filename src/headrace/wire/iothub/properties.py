"""Property bags: `key=value&key=value` behind a telemetry topic, percent-encoded.

Keys are decoded before system properties are recognised (one SDK sends `%24.mid`, another `$.mid`), and a plus is a plus.
A device cannot set what the hub stamps: such a name in a bag stays an application property, apart from the system ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import orjson

SYSTEM = {
    "$.mid": "message-id",
    "$.cid": "correlation-id",
    "$.uid": "user-id",
    "$.ct": "content-type",
    "$.ce": "content-encoding",
    "$.exp": "absolute-expiry-time",
    "$.on": "iothub-output-name",
    "$.sub": "dt-subject",
    "$.ctime": "iothub-creation-time-utc",
    "$.ifid": "iothub-interface-id",
    "$.to": "to",
}
_SHORT = {name: key for key, name in SYSTEM.items()}
UNIQUE = frozenset({"message-id", "correlation-id", "iothub-creation-time-utc", "absolute-expiry-time"})
"""System properties whose values hardly repeat: not worth remembering."""
TYPE_PROPERTY = "type"
STREAM_PROPERTY = "stream"
"""Ours: the stream that a message asks to be stored in."""
DEFAULT_TYPE = "telemetry"


class Properties(NamedTuple):
    """A message's properties; a key without `=` has None."""

    system: dict[str, str | None]
    application: dict[str, str | None]

    @property
    def size_bytes(self) -> int:
        """What counts towards a message's size: values of system, names and values of application properties."""
        system = sum(len((value or "").encode()) for value in self.system.values())
        return system + sum(len(f"{key}{value or ''}".encode()) for key, value in self.application.items())


class Described(NamedTuple):
    """What an event's columns say about its properties; see core.schema."""

    message_id: str | None
    type: str
    content_type: str | None
    text: str | None  # JSON of {"system": ..., "application": ...}, None when there are none
    stream: str = ""  # what it asks for by STREAM_PROPERTY


NOTHING = Described(None, DEFAULT_TYPE, None, None)


def _unquote(text: bytes) -> str:
    return (unquote_to_bytes(text) if b"%" in text else text).decode("utf-8", "replace")


def _parts(bag: bytes) -> list[bytes]:
    """A bag cut at `&`. A slash behind it and a question mark before it, which some clients send, do not belong to it."""
    return bag.removesuffix(b"/").removeprefix(b"?").split(b"&")


def _part(part: bytes) -> tuple[bool, str, str | None]:
    """(is a system property, name, value) of one `key=value`."""
    raw_key, equals, raw_value = part.partition(b"=")
    key = _unquote(raw_key)
    value = _unquote(raw_value) if equals else None
    name = SYSTEM.get(key)
    return (True, name, value) if name else (False, key, value)


def decode_bag(bag: bytes) -> Properties:
    """The properties in a bag. Never fails: what is no valid percent-encoding stays as it is, the last of two wins."""
    found = Properties({}, {})
    for part in _parts(bag):
        if part:
            is_system, name, value = _part(part)
            (found.system if is_system else found.application)[name] = value
    return found


def encode_bag(system: Mapping[str, str | None], application: Mapping[str, str | None]) -> bytes:
    """A bag that `decode_bag` reads back; `system` goes by the names of SYSTEM's values."""
    pairs = [(_SHORT[name], value) for name, value in system.items()] + list(application.items())
    texts = (quote(key, safe="$.") + ("" if value is None else "=" + quote(value, safe="")) for key, value in pairs)
    return "&".join(texts).encode()


def encode_mail_bag(device: str, system: Mapping[str, str | None], application: Mapping[str, str | None]) -> bytes:
    """The bag of a cloud-to-device message, its address first. SDKs cut it at `&` and `=` before they decode, so every pair
    has an `=` and nothing stands in it unencoded that could be mistaken."""
    addressed = {"to": f"/devices/{device}/messages/devicebound"} | {
        name: value or "" for name, value in system.items() if name in _SHORT and name != "to"
    }
    return encode_bag(addressed, {name: value or "" for name, value in application.items()})


def stamps(device: str, module: str | None, *, generation: str, method: str, enqueued: str) -> dict[str, str]:
    """What the hub says of a message by itself, whatever stands in its bag; under the names that Event Hub readers see.

    All of it follows from an event's columns and from the registry, so it is not stored with each event.
    """
    said = {
        "iothub-connection-device-id": device,
        "iothub-connection-auth-method": method,
        "iothub-connection-auth-generation-id": generation,
        "iothub-enqueuedtime": enqueued,
        "iothub-message-source": "Telemetry",
    }
    return said if module is None else said | {"iothub-connection-module-id": module}


def describe(properties: Properties) -> Described:
    """The columns of one message."""
    system, application = properties
    if not system and not application:
        return NOTHING
    text = orjson.dumps({"system": system, "application": application}).decode()
    kind = application.get(TYPE_PROPERTY) or DEFAULT_TYPE
    stream = application.get(STREAM_PROPERTY) or ""
    return Described(system.get("message-id") or None, kind, system.get("content-type"), text, stream)


_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:~"
"""Bytes that mean the same in a bag and in JSON."""


class _Rest(NamedTuple):
    """What stands behind a message id, described once: `text` follows the id in the JSON."""

    type: str
    content_type: str | None
    text: str
    stream: str


class BagReader:
    """Decodes many bags, remembering what comes again (a content type, a unit, a site).

    Most bags differ in nothing but a message id at their beginning, so what stands behind it is remembered by itself. Each
    memory holds `entries_max` at most and starts afresh when full.
    """

    def __init__(self, *, entries_max: int = 10_000) -> None:
        self._entries_max = entries_max
        self._parts: dict[bytes, tuple[bool, str, str | None]] = {}
        self._bags: dict[bytes, Described] = {b"": NOTHING}
        self._rests: dict[bytes, _Rest] = {}

    def describe(self, bags: Iterable[bytes]) -> list[Described]:
        """The columns of many messages, in order."""
        known = self._bags
        return [known.get(bag) or self._read(bag) for bag in bags]

    def _read(self, bag: bytes) -> Described:
        head, _, behind = bag.partition(b"&")
        raw_id = head[6:] if head[:6] == b"$.mid=" else head[8:] if head[:8] == b"%24.mid=" else b""
        if raw_id and not raw_id.translate(None, _PLAIN):
            rest = self._rests.get(behind) or self._rest(behind)
            if rest is not None:
                message_id = raw_id.decode()
                text = f'{{"system":{{"message-id":"{message_id}"{rest.text}'
                return Described(message_id, rest.type, rest.content_type, text, rest.stream)
        return self._read_parts(bag)

    def _rest(self, behind: bytes) -> _Rest | None:
        """None when what stands behind a message id cannot be taken by itself."""
        system, application = decode_bag(behind)
        if "message-id" in system or behind[:1] == b"?" or len(behind) >= 512:
            return None
        described = describe(Properties({"message-id": "", **system}, application))
        start = '{"system":{"message-id":""'
        assert described.text is not None
        assert described.text.startswith(start)
        if len(self._rests) >= self._entries_max:
            self._rests.clear()
        rest = _Rest(described.type, described.content_type, described.text[len(start) :], described.stream)
        self._rests[behind] = rest
        return rest

    def _read_parts(self, bag: bytes) -> Described:
        system: dict[str, str | None] = {}
        application: dict[str, str | None] = {}
        parts = self._parts
        repeats = True
        for part in _parts(bag):
            known = parts.get(part)
            if known is None:
                if not part:
                    continue
                known = _part(part)
                if known[0] and known[1] in UNIQUE:
                    repeats = False
                else:
                    self._remember(part, known)
            (system if known[0] else application)[known[1]] = known[2]
        described = describe(Properties(system, application))
        if repeats and len(bag) < 512:
            if len(self._bags) >= self._entries_max:
                self._bags = {b"": NOTHING}
            self._bags[bag] = described
        return described

    def _remember(self, part: bytes, known: tuple[bool, str, str | None]) -> None:
        if len(part) < 256:
            if len(self._parts) >= self._entries_max:
                self._parts.clear()
            self._parts[part] = known
