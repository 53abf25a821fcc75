"""Who may come in: user names with scrypt hashes, and what each may publish and subscribe to.

A hash is `scrypt$N$r$p$salt$key` (base64). Checking one costs tens of milliseconds on purpose, so it happens in a thread, and
a password that was right before is remembered as a keyed digest for as long as the process lives.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Mapping

from headrace.core.config import BrokerAclConfig, Secret
from headrace.core.errors import UserError
from headrace.wire.mqtt.reasons import PacketRefused
from headrace.wire.mqtt.topics import covers, matches, parse_filter

N, R, P = 1 << 14, 8, 1
SALT_BYTES, KEY_BYTES = 16, 32
SCRYPT_BYTES_MAX = 64 * 1024 * 1024
REMEMBERED_MAX = 10_000


def hash_password(password: str, salt: bytes) -> str:
    """What goes into [broker.users]. `salt` is SALT_BYTES random bytes."""
    key = hashlib.scrypt(password.encode(), salt=salt, n=N, r=R, p=P, dklen=KEY_BYTES, maxmem=SCRYPT_BYTES_MAX)
    return f"scrypt${N}${R}${P}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


class _Hash:
    """Raises UserError for a text that is no hash."""

    def __init__(self, name: str, text: str) -> None:
        try:
            kind, n, r, p, salt, key = text.split("$")
            self._n, self._r, self._p = int(n), int(r), int(p)
            self._salt, self._key = base64.b64decode(salt, validate=True), base64.b64decode(key, validate=True)
            if kind != "scrypt" or not self._key or self._n * self._r * 128 > SCRYPT_BYTES_MAX:
                raise ValueError(kind)
        except ValueError as exc:
            raise UserError(
                f"[broker.users] {name}: not a password hash",
                hint="make one with `headrace broker user add`",
                code="broker.user",
            ) from exc

    def verify(self, password: bytes) -> bool:
        found = hashlib.scrypt(
            password, salt=self._salt, n=self._n, r=self._r, p=self._p, dklen=len(self._key), maxmem=SCRYPT_BYTES_MAX
        )
        return hmac.compare_digest(found, self._key)


class Users:
    """`pepper` are random bytes of this process: the key of remembered passwords."""

    def __init__(self, users: Mapping[str, Secret], pepper: bytes) -> None:
        self._hashes = {name: _Hash(name, secret.reveal()) for name, secret in users.items()}
        self._nobody = next(iter(self._hashes.values()), None)  # whose hash an unknown name is checked against
        self._pepper = pepper
        self._remembered: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def remembers(self, name: str, password: bytes) -> bool:
        """Whether this pair was right before: the cheap check."""
        return self._digest(name, password) in self._remembered

    def verify(self, name: str, password: bytes) -> bool:
        """The whole check. Blocks for tens of milliseconds, whether the user exists or not: call it in a thread."""
        known = self._hashes.get(name)
        checked = known or self._nobody
        right = checked is not None and checked.verify(password) and known is not None
        if right:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered.add(self._digest(name, password))
        return right

    def _digest(self, name: str, password: bytes) -> bytes:
        return hmac.digest(self._pepper, name.encode() + b"\0" + password, "sha256")


class Rights:
    """What one user with one client id may do."""

    def __init__(self, rules: Iterable[BrokerAclConfig], user: str, client_id: str) -> None:
        every = list(rules)
        mine = [rule for rule in every if _fits(rule.user, user) and _fits(rule.client, client_id)]
        self._free = not every

        def filters(name: str) -> list[tuple[bytes, ...]]:
            return [
                parse_filter(text.encode()).levels
                for rule in mine
                for text in (_filled(filter, user, client_id) for filter in getattr(rule, name))
                if text
            ]

        self._publish, self._no_publish = filters("publish"), filters("deny_publish")
        self._subscribe, self._no_subscribe = filters("subscribe"), filters("deny_subscribe")
        self.receives_all = not self._no_subscribe

    def may_publish(self, topic: bytes) -> bool:
        if self._free:
            return True
        return _any(self._publish, topic) and not _any(self._no_publish, topic)

    def may_subscribe(self, levels: tuple[bytes, ...]) -> bool:
        """Whether all that the filter matches may be read; a part of it that may not be is left out when it comes."""
        if self._free:
            return True
        allowed = any(covers(each, levels) for each in self._subscribe)
        return allowed and not any(covers(each, levels) for each in self._no_subscribe)

    def may_receive(self, topic: bytes) -> bool:
        return self.receives_all or not _any(self._no_subscribe, topic)


def check_rules(rules: Iterable[BrokerAclConfig]) -> None:
    """Raises UserError that names the filter which is none."""
    for rule in rules:
        for text in (*rule.publish, *rule.subscribe, *rule.deny_publish, *rule.deny_subscribe):
            try:
                group = parse_filter(text.encode()).group
            except PacketRefused as exc:
                raise UserError(
                    f"[[broker.acl]] {text!r}: {exc.message}", hint="write a topic filter", code="broker.acl"
                ) from exc
            if group:
                raise UserError(
                    f"[[broker.acl]] {text!r} is shared", hint="write the filter behind $share/NAME/", code="broker.acl"
                )


def _fits(pattern: str, text: str) -> bool:
    return fnmatch.fnmatchcase(text, pattern)


def _filled(text: str, user: str, client_id: str) -> str:
    """A rule's filter for one user; empty (nothing) where a name would add levels or wildcards of its own."""
    for mark, value in (("%u", user), ("%c", client_id)):
        if mark in text:
            if not value or any(char in value for char in "+#/"):
                return ""
            text = text.replace(mark, value)
    return text


def _any(filters: list[tuple[bytes, ...]], topic: bytes) -> bool:
    return any(matches(levels, topic) for levels in filters)
