"""What a device may be called and what its keys must be: the rules of Azure IoT Hub's identity registry."""

from __future__ import annotations

import base64
import binascii
import re

from headrace.core.errors import UserError

ID_LENGTH_MAX = 128
KEY_BYTES = 32
KEY_BYTES_MIN = 16
KEY_BYTES_MAX = 64
_LEGAL = r"A-Za-z0-9\-:.+%_#*?!(),=@;$'"
_ID = re.compile(rf"[{_LEGAL}]{{1,{ID_LENGTH_MAX}}}")
_ILLEGAL = re.compile(rf"[^{_LEGAL}]")


def check_id(id: str) -> str:
    """Return `id`, or raise UserError that names the first character that is not allowed."""
    if _ID.fullmatch(id):
        return id
    if not id:
        raise UserError("the device id is empty", hint="give it a name such as press-07", code="device.id")
    wrong = _ILLEGAL.search(id)
    if wrong is None:
        raise UserError(
            f"the device id has {len(id)} characters", hint=f"use at most {ID_LENGTH_MAX}", code="device.id"
        )
    raise UserError(
        f"{wrong[0]!r} at position {wrong.start()} of device id {id[:ID_LENGTH_MAX]!r} is not allowed",
        hint="use ASCII letters, digits and - : . + % _ # * ? ! ( ) , = @ ; $ '",
        code="device.id",
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
