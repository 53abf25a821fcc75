"""Reason codes of MQTT 5.0 (section 2.4), and the error that carries one.

3.1.1 has no such codes: there a connection is simply closed, so the same error serves both versions.
"""

from __future__ import annotations

from headrace.core.errors import DataError

SUCCESS = 0x00
DISCONNECT_WITH_WILL = 0x04
NO_MATCHING_SUBSCRIBERS = 0x10
NO_SUBSCRIPTION_EXISTED = 0x11
UNSPECIFIED = 0x80
MALFORMED = 0x81
PROTOCOL_ERROR = 0x82
IMPLEMENTATION = 0x83
UNSUPPORTED_VERSION = 0x84
CLIENT_ID_INVALID = 0x85
BAD_CREDENTIALS = 0x86
NOT_AUTHORISED = 0x87
SERVER_UNAVAILABLE = 0x88
SERVER_BUSY = 0x89
BAD_AUTH_METHOD = 0x8C
SHUTTING_DOWN = 0x8B
KEEP_ALIVE_TIMEOUT = 0x8D
TAKEN_OVER = 0x8E
FILTER_INVALID = 0x8F
TOPIC_INVALID = 0x90
PACKET_ID_IN_USE = 0x91
PACKET_ID_NOT_FOUND = 0x92
RECEIVE_MAXIMUM_EXCEEDED = 0x93
TOPIC_ALIAS_INVALID = 0x94
PACKET_TOO_LARGE = 0x95
RATE_TOO_HIGH = 0x96
QUOTA_EXCEEDED = 0x97
ADMINISTRATIVE = 0x98
PAYLOAD_FORMAT_INVALID = 0x99

ERROR = 0x80
"""Reason codes from here on are failures."""

NAMES = {
    value: name.lower() for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)
} | {UNSPECIFIED: "unspecified"}

CONNACK_3 = {
    UNSUPPORTED_VERSION: 1,
    CLIENT_ID_INVALID: 2,
    SERVER_UNAVAILABLE: 3,
    SERVER_BUSY: 3,
    QUOTA_EXCEEDED: 3,
    SHUTTING_DOWN: 3,
    BAD_CREDENTIALS: 4,
    NOT_AUTHORISED: 5,
}
"""The CONNACK return code of 3.1.1 for a reason; what is not here closes the connection without a word."""


class PacketRefused(DataError):
    """A packet that breaks the protocol. `reason` goes into the CONNACK or DISCONNECT of MQTT 5, unless it is `quiet`: then
    the connection is closed without a word, as section 4.13 allows."""

    code = "mqtt.refused"

    def __init__(self, reason: int, message: str, *, hint: str = "", version: int = 0, quiet: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.quiet = quiet
        self.version = version  # of a CONNECT that could be read so far; 0 where that is not known


def malformed(message: str) -> PacketRefused:
    """Bytes that cannot be read as the specification says."""
    return PacketRefused(MALFORMED, message)


def protocol_error(message: str) -> PacketRefused:
    """Bytes that can be read, and say what must not be said here."""
    return PacketRefused(PROTOCOL_ERROR, message)
