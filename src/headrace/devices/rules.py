"""What a device may be called and what it may prove itself with: the rules of Azure IoT Hub's identity registry."""

from __future__ import annotations

import base64
import binascii
import re

from headrace.core.errors import UserError

ID_LENGTH_MAX = 128
KEY_BYTES = 32
KEY_BYTES_MIN = 16
KEY_BYTES_MAX = 64
MODULES_MAX = 50
STATUS_REASON_CHARS_MAX = 128
EDGE_SCOPE = "ms-azure-iot-edge://"
_LEGAL = r"A-Za-z0-9\-:.+%_#*?!(),=@;$'"
_ID = re.compile(rf"[{_LEGAL}]{{1,{ID_LENGTH_MAX}}}")
_ILLEGAL = re.compile(rf"[^{_LEGAL}]")
_THUMBPRINT = re.compile("[0-9A-F]{40}|[0-9A-F]{64}")


def check_id(id: str, *, kind: str = "device") -> str:
    """Return `id`, or raise UserError that names the first character that is not allowed."""
    if _ID.fullmatch(id):
        return id
    code = f"{kind}.id"
    if not id:
        raise UserError(f"the {kind} id is empty", hint="give it a name such as press-07", code=code)
    wrong = _ILLEGAL.search(id)
    if wrong is None:
        raise UserError(f"the {kind} id has {len(id)} characters", hint=f"use at most {ID_LENGTH_MAX}", code=code)
    raise UserError(
        f"{wrong[0]!r} at position {wrong.start()} of {kind} id {id[:ID_LENGTH_MAX]!r} is not allowed",
        hint="use ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '",
        code=code,
    )


def make_key(random: bytes) -> str:
    """A key from `KEY_BYTES` random bytes."""
    assert len(random) == KEY_BYTES
    return base64.b64encode(random).decode()


def check_key(key: str) -> str:
    """Return `key`, or raise UserError (which does not show it) when it is not base64 of 16 to 64 bytes."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise UserError("the key is not base64", hint="leave it out to have one made", code="device.key") from exc
    if not KEY_BYTES_MIN <= len(raw) <= KEY_BYTES_MAX:
        raise UserError(
            f"the key has {len(raw)} bytes",
            hint=f"use base64 of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes, or leave it out to have one made",
            code="device.key",
        )
    return key


def check_thumbprint(text: str) -> str:
    """Hexadecimal digits of SHA-1 or SHA-256 in upper case, without colons and spaces. Raises UserError."""
    digits = text.replace(":", "").replace(" ", "").upper()
    if _THUMBPRINT.fullmatch(digits):
        return digits
    raise UserError(
        f"a thumbprint of {len(digits)} characters",
        hint="give the SHA-1 (40) or SHA-256 (64) hexadecimal digits of the certificate",
        code="device.thumbprint",
    )


def edge_scope(device: str, generation_id: str) -> str:
    """What children of an edge device name as their scope."""
    return f"{EDGE_SCOPE}{device}-{generation_id}"


def edge_device_of(scope: str) -> str:
    """The device that a scope belongs to; empty when it is no scope of an edge device."""
    return scope.removeprefix(EDGE_SCOPE).rpartition("-")[0] if scope.startswith(EDGE_SCOPE) else ""
