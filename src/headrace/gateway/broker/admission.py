"""Who may connect: a certificate's common name, a user name with its password, or on loopback nobody in particular."""

from __future__ import annotations

import asyncio

from headrace.core.config import BrokerConfig
from headrace.gateway.broker.users import Users
from headrace.wire.mqtt import properties5
from headrace.wire.mqtt.packets5 import V5, V31, Connect
from headrace.wire.mqtt.reasons import (
    BAD_AUTH_METHOD,
    BAD_CREDENTIALS,
    CLIENT_ID_INVALID,
    NOT_AUTHORISED,
    QUOTA_EXCEEDED,
    SERVER_BUSY,
    SERVER_UNAVAILABLE,
    SUCCESS,
)

CHECKS_AT_ONCE = 2  # passwords; each takes 16 MB and a core
CHECKS_WAITING_MAX = 200
CHECK_TIMEOUT_S = 8.0


class Admission:
    def __init__(self, config: BrokerConfig, users: Users) -> None:
        self._config = config
        self._users = users
        self._gate = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._waiting = 0
        self.stopping = False

    def reason(self, connect: Connect, links: int) -> int:
        """Why a CONNECT is refused whoever it comes from; SUCCESS when it is not."""
        if self.stopping:
            return SERVER_UNAVAILABLE
        if links > self._config.connections_max:
            return QUOTA_EXCEEDED
        if properties5.AUTH_METHOD in connect.properties:
            return BAD_AUTH_METHOD
        if not connect.client_id and connect.version < V5 and not (connect.clean_start and connect.version > V31):
            return CLIENT_ID_INVALID
        return SUCCESS

    def user(self, connect: Connect, certificate_name: str | None) -> str | int | None:
        """The user's name (empty: nobody in particular), a reason to refuse, or None where `verify` must tell."""
        if certificate_name is not None:
            return certificate_name
        if not self._users and self._config.anonymous:
            return ""  # there is nothing to check a name against, so it counts for nothing
        if connect.username is None:
            return "" if self._config.anonymous else NOT_AUTHORISED
        if self._users.remembers(connect.username, connect.password or b""):
            return connect.username
        return None

    async def verify(self, connect: Connect) -> str | int:
        """Check a password, with many others waiting if need be. Returns the user's name or a reason to refuse."""
        if self._waiting >= CHECKS_WAITING_MAX:
            return SERVER_BUSY
        name, password = connect.username or "", connect.password or b""
        self._waiting += 1
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S), self._gate:
                right = await asyncio.to_thread(self._users.verify, name, password)
        except TimeoutError:
            return SERVER_BUSY
        finally:
            self._waiting -= 1
        return name if right else BAD_CREDENTIALS
