"""The topics and user names of IoT Hub's MQTT dialect.

Ids stand in topics as they are, never percent-encoded, and are compared with case.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

from headrace.core.errors import UserError
from headrace.wire.iothub.sas import host_name

API_VERSION = "2021-04-12"
METHODS_FILTER = "$iothub/methods/POST/#"
TWIN_ANSWERS_FILTER = "$iothub/twin/res/#"
DESIRED_FILTER = "$iothub/twin/PATCH/properties/desired/#"
MODEL_ID_CHARS_MAX = 2048
SERVICE_PREFIX = b"$iothub/"
"""What topics of twins and methods start with; they name no identity, for it is the connection's."""


class BadUserName(UserError):
    """A user name of CONNECT that names no host and device."""

    code = "mqtt.user_name"


class Identity(NamedTuple):
    """Who is connected: a device, or a module of it."""

    device: str
    module: str | None = None

    @property
    def client_id(self) -> str:
        return self.device if self.module is None else f"{self.device}/{self.module}"

    @property
    def path(self) -> str:
        """Its resource below the host, as tokens name it."""
        return f"devices/{self.device}" if self.module is None else f"devices/{self.device}/modules/{self.module}"


class UserName(NamedTuple):
    host: str  # lower case, without port
    identity: Identity


def parse_user_name(text: str) -> UserName:
    """`{host}/{id}[/{module}]`, with or without `/?api-version=...` or `/api-version=...` behind. Raises BadUserName."""
    host, *rest = text.split("/")
    if len(rest) > 1 and (not rest[-1] or rest[-1].startswith(("?", "api-version="))):
        rest.pop()
    if not host or not 1 <= len(rest) <= 2 or not all(rest):
        raise BadUserName("a user name that names no device", hint="send {host}/{device}/?api-version=2021-04-12")
    return UserName(host_name(host), Identity(rest[0], rest[1] if len(rest) == 2 else None))


def model_id_of(user_name: str) -> str:
    """The model that a Plug and Play device names behind its user name; empty for none."""
    for part in user_name.replace("?", "&").split("&"):
        if part.startswith("model-id="):
            return unquote(part.removeprefix("model-id="))[:MODEL_ID_CHARS_MAX]
    return ""


def user_name(host: str, identity: Identity) -> str:
    return f"{host}/{identity.client_id}/?api-version={API_VERSION}"


def telemetry_prefix(identity: Identity) -> bytes:
    """What every telemetry topic of `identity` starts with; the property bag follows."""
    return f"{identity.path}/messages/events/".encode()


def bag_of(topic: bytes, prefix: bytes) -> bytes | None:
    """The property bag in a telemetry topic, `b""` for none; None when the topic is not below `prefix`.

    The slash that ends the prefix may be missing.
    """
    if topic.startswith(prefix):
        return topic[len(prefix) :]
    return b"" if topic == prefix[:-1] else None


def mail_filter(identity: Identity) -> str:
    """The filter of cloud-to-device messages."""
    return f"{identity.path}/messages/devicebound/#"


def mail_topic(device: str, bag: bytes) -> bytes:
    """Where a cloud-to-device message goes. The slash stands even before an empty bag: one SDK's matcher needs it."""
    return b"devices/%b/messages/devicebound/%b" % (device.encode(), bag)


def may_subscribe(topic_filter: str, identity: Identity) -> bool:
    """Whether the hub grants this filter to this identity: its own mailbox, methods and twin, and nothing else."""
    allowed = {
        METHODS_FILTER,
        TWIN_ANSWERS_FILTER,
        DESIRED_FILTER,
        mail_filter(identity),
    }
    if identity.module is not None:
        allowed |= {f"{identity.path}/inputs/#", f"{identity.path}/#"}
    return topic_filter in allowed
