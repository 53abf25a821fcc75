"""Shared access signatures: `SharedAccessSignature sr=<uri>&sig=<signature>&se=<epoch seconds>[&skn=<policy>]`.

The signature covers the text of `sr` and `se` exactly as they stand in the token. Clients percent-encode differently, so
nothing is ever decoded and encoded again before it is verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from headrace.core.errors import UserError

SCHEME = "SharedAccessSignature"
TOKEN_CHARS_MAX = 4096
Reason = Literal["token_malformed", "token_expired", "token_signature", "token_resource"]


class TokenRefused(UserError):
    """A token that does not open the door. `reason` is stable; the text never holds the token."""

    code = "sas.refused"

    def __init__(self, reason: Reason, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint, code=f"sas.{reason}")
        self.reason: Reason = reason


class Token(NamedTuple):
    """A token's fields. `resource` and `expiry` are the signed texts, as they stood."""

    resource: str
    expiry: str
    signature: bytes
    policy: str | None

    @property
    def expires_s(self) -> int:
        return int(self.expiry)


def parse(text: str) -> Token:
    """The fields of a token, in any order. Raises TokenRefused (token_malformed)."""
    scheme, _, rest = text.strip().partition(" ")
    if len(text) > TOKEN_CHARS_MAX or scheme.lower() != SCHEME.lower():
        raise _malformed(f"it does not start with {SCHEME!r}" if len(text) <= TOKEN_CHARS_MAX else "it is too long")
    fields: dict[str, str] = {}
    for part in rest.strip().split("&"):
        key, equals, value = part.partition("=")
        if not equals or key in fields:
            raise _malformed("a field has no value, or comes twice")
        fields[key] = value
    missing = {"sr", "sig", "se"} - fields.keys()
    if missing:
        raise _malformed(f"it lacks {', '.join(sorted(missing))}")
    expiry = fields["se"]
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 15):
        raise _malformed("se is not a number of seconds")
    try:
        signature = base64.b64decode(unquote_to_bytes(fields["sig"]), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _malformed("sig is not base64") from exc
    policy = unquote(fields["skn"]) if fields.get("skn") else None
    return Token(fields["sr"], expiry, signature, policy)


def _malformed(why: str) -> TokenRefused:
    return TokenRefused("token_malformed", f"not a shared access signature: {why}", hint="send sr, sig and se")


def sign(key: str, resource: str, expiry: str) -> bytes:
    """HMAC-SHA256 over `resource`, a newline and `expiry`, with the base64 `key`. UserError if it is not base64."""
    try:
        secret = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise UserError("the key is not base64", hint="copy the whole key", code="sas.key") from exc
    return hmac.digest(secret, f"{resource}\n{expiry}".encode(), hashlib.sha256)


def build(resource: str, key: str, *, expires_s: int, policy: str | None = None) -> str:
    """A token for `resource` (`{host}/devices/{id}`, not encoded), valid until `expires_s` (UTC seconds)."""
    encoded, expiry = quote(resource, safe=""), str(expires_s)
    signature = quote(base64.b64encode(sign(key, encoded, expiry)), safe="")
    tail = f"&skn={quote(policy, safe='')}" if policy else ""
    return f"{SCHEME} sr={encoded}&sig={signature}&se={expiry}{tail}"


def verify(
    token: Token, *, keys: Iterable[str], hosts: Collection[str], path: str, now_s: float, leeway_s: float = 0
) -> None:
    """Raises TokenRefused unless `token` opens `path` (`devices/{id}`) on one of `hosts` and a key of `keys` signed it.

    `hosts` are lower-case names without a port. The signature is compared in constant time, and before anything else, so
    that a stranger learns nothing from the answer.
    """
    signed = [hmac.compare_digest(sign(key, token.resource, token.expiry), token.signature) for key in keys]
    if not any(signed):
        raise TokenRefused("token_signature", "the token is signed with another key", hint="use the device's own key")
    if token.expires_s + leeway_s <= now_s:
        late_s = now_s - token.expires_s
        raise TokenRefused("token_expired", f"the token expired {late_s:.0f} s ago", hint="renew it; check the clock")
    if not covers(token.resource, hosts=hosts, path=path):
        raise TokenRefused("token_resource", "the token is for another resource", hint=f"sign sr={{host}}/{path}")


def covers(resource: str, *, hosts: Collection[str], path: str) -> bool:
    """Whether the resource of a token (as it stands in it) opens `path` on one of `hosts`, segment by segment.

    >>> covers("hub%2Fdevices%2Fa", hosts={"hub"}, path="devices/a/messages/events")
    True
    >>> covers("hub%2Fdevices%2Fa", hosts={"hub"}, path="devices/ab")
    False
    """
    host, *opened = unquote(resource).rstrip("/").split("/")
    wanted = path.split("/")
    return host_name(host) in hosts and len(opened) <= len(wanted) and wanted[: len(opened)] == opened


def host_name(text: str) -> str:
    """A host without its port, in lower case; `[::1]:8883` gives `::1`."""
    lowered = text.lower()
    if lowered.startswith("["):
        return lowered[1:].partition("]")[0]
    name, colon, port = lowered.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else lowered
