"""Errors as IoT Hub's service API tells them: a status, a name in `iothub-errorcode`, and a body that its SDKs read.

SDKs build their error classes from the text `ErrorCode:{name};{text}`, so both halves are always there.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.core.errors import Conflict, HeadraceError, NotFound, Unavailable


class Kind(NamedTuple):
    status: int
    name: str
    number: int  # IoT Hub's own


INVALID = Kind(400, "ArgumentInvalid", 400004)
UNAUTHORIZED = Kind(401, "IotHubUnauthorizedAccess", 401002)
NO_PATH = Kind(404, "NotFound", 404000)
NO_METHOD = Kind(405, "MethodNotAllowed", 405000)
STALE = Kind(412, "PreconditionFailed", 412001)
TOO_LARGE = Kind(413, "MessageTooLarge", 413001)
THROTTLED = Kind(429, "ThrottlingException", 429001)
FAILED = Kind(500, "ServerError", 500001)
UNAVAILABLE = Kind(503, "ServiceUnavailable", 503001)
KINDS = {
    "device.exists": Kind(409, "DeviceAlreadyExists", 409001),
    "device.not_found": Kind(404, "DeviceNotFound", 404001),
    "device.etag": STALE,
    "module.exists": Kind(409, "ModuleAlreadyExistsOnDevice", 409301),
    "module.not_found": Kind(404, "ModuleNotFound", 404010),
    "module.etag": STALE,
    "twin.etag": STALE,
    "c2d.queue_full": Kind(403, "DeviceMaximumQueueDepthExceeded", 403004),
    "c2d.too_large": TOO_LARGE,
    "c2d.lock_lost": Kind(412, "DeviceMessageLockLost", 412002),
    "method.not_online": Kind(404, "DeviceNotOnline", 404103),
    "method.timeout": Kind(504, "GatewayTimeout", 504101),
    "method.answer": Kind(502, "BadDeviceResponse", 502001),
    "method.too_large": TOO_LARGE,
}
"""By the code of our error; what is not here goes by its class."""


class Denied(HeadraceError):
    """A request that is answered with an error which no service below knows of."""

    def __init__(
        self, kind: Kind, message: str, *, hint: str = "", code: str = "rest.refused", retry_after: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.kind = kind
        self.retry_after = retry_after  # seconds, where they are known


def kind_of(error: HeadraceError) -> Kind:
    """What kind of error of IoT Hub's ours is."""
    if isinstance(error, Denied):
        return error.kind
    if known := KINDS.get(error.code):
        return known
    if isinstance(error, Unavailable):
        return UNAVAILABLE
    if isinstance(error, Conflict):
        return STALE
    return Kind(404, "NotFound", 404000) if isinstance(error, NotFound) else INVALID


def told(error: HeadraceError) -> str:
    """What a client may read: never empty."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return text or error.code
