"""The one line of text that a device needs to connect: `HostName=…;DeviceId=…;SharedAccessKey=…`.

A device id may itself hold `;` and `=`, so fields are found by their names, not by cutting at every semicolon.
"""

from __future__ import annotations

import re

import msgspec

from headrace.core.errors import UserError, nearest
from headrace.devices.rules import check_id, check_key

_NAMES = (
    "HostName",
    "DeviceId",
    "ModuleId",
    "SharedAccessKey",
    "SharedAccessKeyName",
    "GatewayHostName",
    "x509",
)
_NEEDED = ("HostName", "DeviceId", "SharedAccessKey")
_CUT = re.compile(rf";(?=(?:{'|'.join(_NAMES)})=)")


class ConnectionString(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection string says. Its `str()` is the whole text with the key; its repr hides the key."""

    hostname: str
    device_id: str
    key: str
    module_id: str = ""
    gateway_hostname: str = ""

    @property
    def address(self) -> str:
        """The host to dial; tokens and user names keep `hostname`."""
        return self.gateway_hostname or self.hostname

    def __str__(self) -> str:
        text = f"HostName={self.hostname};DeviceId={self.device_id}"
        text += f";ModuleId={self.module_id}" if self.module_id else ""
        text += f";SharedAccessKey={self.key}"
        return text + (f";GatewayHostName={self.gateway_hostname}" if self.gateway_hostname else "")

    def __repr__(self) -> str:
        return f"ConnectionString(hostname={self.hostname!r}, device_id={self.device_id!r}, key=***)"


def build(hostname: str, device_id: str, key: str, *, module_id: str = "", gateway_hostname: str = "") -> str:
    """The text that official device SDKs take.

    >>> build("localhost", "press-07", "c2VjcmV0")
    'HostName=localhost;DeviceId=press-07;SharedAccessKey=c2VjcmV0'
    """
    return str(
        ConnectionString(
            hostname=hostname, device_id=device_id, key=key, module_id=module_id, gateway_hostname=gateway_hostname
        )
    )


def parse(text: str) -> ConnectionString:
    """Read a device's connection string. Raises UserError (code `device.connection_string`) that never shows the key."""
    fields: dict[str, str] = {}
    for part in _CUT.split(text.strip().rstrip(";")):
        name, equals, value = part.partition("=")
        if not equals or name not in _NAMES:
            raise _wrong(f"{name[:40]!r} is no field of it" if equals else "it has a part without `=`", name)
        if name in fields:
            raise _wrong(f"it has {name} twice")
        fields[name] = value
    for name in _NEEDED:
        if not fields.get(name):
            raise _wrong(f"{name} is missing")
    return ConnectionString(
        hostname=fields["HostName"],
        device_id=check_id(fields["DeviceId"]),
        key=check_key(fields["SharedAccessKey"]),
        module_id=fields.get("ModuleId", ""),
        gateway_hostname=fields.get("GatewayHostName", ""),
    )


def _wrong(what: str, name: str = "") -> UserError:
    return UserError(
        f"the connection string cannot be read: {what}",
        hint=nearest(name, _NAMES) or "it reads HostName=…;DeviceId=…;SharedAccessKey=…",
        code="device.connection_string",
    )
