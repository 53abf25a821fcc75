"""The provisioning service's MQTT dialect: user names, request and answer topics, tokens, and keys derived from a group's.

A registration id is compared without case everywhere but in a derived key, which covers the id as the device writes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from headrace.core.errors import DataError, UserError
from headrace.wire.iothub import sas
from headrace.wire.iothub.twin import parameters

FILTER = "$dps/registrations/res/#"
PREFIX = b"$dps/registrations/"
REGISTER = PREFIX + b"PUT/iotdps-register/"
STATUS = PREFIX + b"GET/iotdps-get-operationstatus/"
RID_BYTES_MAX = 256
OPERATION_CHARS_MAX = 256
_MARK = "registrations"
_ID = re.compile(r"[A-Za-z0-9\-._:]{0,127}[A-Za-z0-9\-]")
_SCOPE_CHARS_MAX = 64


class BadRequestTopic(DataError):
    """A topic of a device that asks for nothing known. `rid` is what to answer under, empty where there is none."""

    code = "provisioning.topic"

    def __init__(self, message: str, rid: bytes = b"") -> None:
        super().__init__(message, hint="publish to $dps/registrations/PUT/iotdps-register/?$rid={request id}")
        self.rid = rid


class RegistrationName(NamedTuple):
    """Who wants to be registered, and where."""

    scope: str
    registration_id: str


class RegisterRequest(NamedTuple):
    rid: bytes


class StatusRequest(NamedTuple):
    rid: bytes
    operation_id: str


def parse_user_name(text: str) -> RegistrationName | None:
    """`{idScope}/registrations/{id}/api-version=...`; None for the user name of something else, a hub's device say."""
    scope, *rest = text.split("/")
    if len(rest) < 2 or rest[0] != _MARK or not scope or len(scope) > _SCOPE_CHARS_MAX:
        return None
    if len(rest) > 3 or (len(rest) == 3 and rest[2] and not rest[2].startswith(("?", "api-version="))):
        return None
    return RegistrationName(scope, rest[1])


def check_registration_id(id: str) -> str:
    """Return `id`, or raise UserError where it breaks the rules of registration ids."""
    if _ID.fullmatch(id):
        return id
    raise UserError(
        f"{id[:128]!r} is no registration id",
        hint="use 1 to 128 letters, digits and - . _ : and end with a letter, a digit or -",
        code="provisioning.id",
    )


def fold(id: str) -> str:
    """Ids that differ in case only are one: this is what they are kept and compared by."""
    return id.lower()


def parse_request(topic: bytes) -> RegisterRequest | StatusRequest:
    """What a device asks. Raises BadRequestTopic."""
    for start in (REGISTER, STATUS):
        if topic.startswith(start) or topic == start[:-1]:
            fields = parameters(topic[len(start) :])
            rid = fields.get(b"$rid", b"")
            if not rid or len(rid) > RID_BYTES_MAX or rid.translate(None, b"$+#/?") != rid:
                raise BadRequestTopic("a request without a usable $rid")
            if start is REGISTER:
                return RegisterRequest(rid)
            operation = unquote(fields.get(b"operationId", b"").decode("utf-8", "replace"))
            if not operation or len(operation) > OPERATION_CHARS_MAX:
                raise BadRequestTopic("a status request without an operationId", rid)
            return StatusRequest(rid, operation)
    raise BadRequestTopic("a topic that asks for nothing")


def answer_topic(status: int, rid: bytes, retry_after_s: int | None = None) -> bytes:
    """One `$` behind the `?` and a `=` in every pair: one SDK's parser needs both."""
    wait = b"" if retry_after_s is None else b"&retry-after=%d" % retry_after_s
    return b"$dps/registrations/res/%d/?$rid=%b%b" % (status, rid, wait)


def derive_key(group_key: str, registration_id: str) -> str:
    """The key of one device of a group: HMAC-SHA256 of its registration id under the group's key, both base64.

    Raises UserError where the group's key is not base64.

    >>> derive_key("c2VjcmV0LW9mLWEtZ3JvdXA=", "press-7")
    'rd/rXDIAaYb1Txhcma63BiXaYRKhxJn9pJwQAWLhjc8='
    """
    try:
        secret = base64.b64decode(group_key, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise UserError("the group's key is not base64", hint="copy the whole key", code="sas.key") from exc
    return base64.b64encode(hmac.digest(secret, registration_id.encode(), hashlib.sha256)).decode()


def verify_token(
    token: sas.Token, *, keys: Iterable[str], name: RegistrationName, now_s: float, leeway_s: float = 0
) -> None:
    """Raises sas.TokenRefused unless one of `keys` has signed the token for this registration of this scope."""
    path = f"{_MARK}/{name.registration_id}"
    opened = unquote(token.resource).partition("/")[2]
    if opened.lower() == path.lower():
        path = opened
    sas.verify(token, keys=keys, hosts={name.scope.lower()}, path=path, now_s=now_s, leeway_s=leeway_s)
