"""Direct methods: a question to a connected device, and its answer.

An answer counts only when it comes from the identity that was asked, with the request id it was asked under, which nobody can
guess. Where several gateway processes share the devices, the one that holds the connection asks on behalf of the one that was
asked; exactly one of them does, so no method runs twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from headrace.core.errors import HeadraceError, Unavailable, UserError
from headrace.gateway.bus import Bus
from headrace.wire.iothub.topics import Identity

RESPONSE_TIMEOUT_S = 30.0
RESPONSE_TIMEOUT_MAX_S = 300.0
CONNECT_TIMEOUT_MAX_S = 300.0
PAYLOAD_BYTES_MAX = 131_072
NAME_CHARS_MAX = 100
WAITING_MAX = 10_000
BUS_MARGIN_S = 2.0
RID_BYTES = 12
FIND, CALL = "method.find", "method.call"


class DeviceNotOnline(Unavailable):
    """The device is not connected, or does not listen for methods: IoT Hub's 404103."""

    code = "method.not_online"


class MethodTimeout(Unavailable):
    """The device did not answer in time: IoT Hub's 504101. It may have done what it was asked all the same."""

    code = "method.timeout"


class MethodAnswerInvalid(Unavailable):
    """The device answered with something that is not JSON, or with too much of it."""

    code = "method.answer"


class MethodInvalid(UserError):
    """A request that cannot be put to a device: no name, a timeout out of bounds. IoT Hub's 400004."""

    code = "method.invalid"


class MethodTooLarge(MethodInvalid):
    """A payload above PAYLOAD_BYTES_MAX: IoT Hub's 413001."""

    code = "method.too_large"


_ERRORS = {error.code: error for error in (DeviceNotOnline, MethodTimeout, MethodAnswerInvalid)}


class Reach(Protocol):
    """The connections of this process that listen for methods."""

    def listens(self, identity: Identity) -> bool: ...

    def ask(self, identity: Identity, name: str, rid: str, payload: bytes) -> bool:
        """Send a question; False when nobody listens."""
        ...


class _Asked(NamedTuple):
    client_id: str
    answer: asyncio.Future[tuple[int, bytes]]


class Methods:
    """Invoke methods on devices and modules, wherever they are connected.

    `reach` is None in a process without connections of its own (a console): it asks through the bus. Build it before the
    bus starts.
    """

    def __init__(self, bus: Bus, *, random_bytes: Callable[[int], bytes], reach: Reach | None = None) -> None:
        self._bus = bus
        self._random_bytes = random_bytes
        self.reach = reach
        self._asked: dict[str, _Asked] = {}
        self._arrivals: dict[str, set[asyncio.Event]] = {}
        bus.on(FIND, self._find_for_peer)
        bus.on(CALL, self._call_for_peer)

    async def invoke(
        self,
        identity: Identity,
        name: str,
        payload: Any,
        *,
        response_timeout_s: float = RESPONSE_TIMEOUT_S,
        connect_timeout_s: float = 0.0,
    ) -> tuple[int, Any]:
        """(status, payload) of the device's answer; both payloads are JSON values.

        Raises DeviceNotOnline, MethodTimeout, MethodAnswerInvalid, MethodInvalid.
        """
        _check(name, response_timeout_s, connect_timeout_s)
        data = msgspec.json.encode(payload)
        if len(data) > PAYLOAD_BYTES_MAX:
            raise MethodTooLarge(
                f"a payload of {len(data):,} bytes is above {PAYLOAD_BYTES_MAX:,}", hint="send less at once"
            )
        status, answer = await self._anywhere(identity, name, data, response_timeout_s, connect_timeout_s)
        if len(answer) > PAYLOAD_BYTES_MAX:
            raise MethodAnswerInvalid(
                f"the answer has {len(answer):,} bytes, above {PAYLOAD_BYTES_MAX:,}", hint="answer with less"
            )
        try:
            return status, msgspec.json.decode(answer) if answer.strip() else None
        except (msgspec.DecodeError, RecursionError) as exc:
            raise MethodAnswerInvalid(f"the answer of {identity.client_id!r} is not JSON", hint="answer JSON") from exc

    # the connections call these

    def answered(self, client_id: str, rid: str, status: int, payload: bytes) -> None:
        """An answer came in. Late, unknown and foreign ones are ignored."""
        asked = self._asked.get(rid)
        if asked is not None and asked.client_id == client_id and not asked.answer.done():
            asked.answer.set_result((status, payload))

    def arrived(self, client_id: str) -> None:
        """An identity listens for methods from now on."""
        for event in self._arrivals.get(client_id, ()):
            event.set()

    def gone(self, client_id: str) -> None:
        """Its connection ended: what it was asked will not be answered."""
        for asked in list(self._asked.values()) if self._asked else ():
            if asked.client_id == client_id and not asked.answer.done():
                asked.answer.set_exception(_not_online(client_id))

    # inside

    async def _anywhere(
        self, identity: Identity, name: str, payload: bytes, response_timeout_s: float, connect_timeout_s: float
    ) -> tuple[int, bytes]:
        if self.reach is not None and self.reach.listens(identity):
            return await self._here(identity, name, payload, response_timeout_s)
        peer = await self._find(identity, connect_timeout_s)
        if peer is None:
            raise _not_online(identity.client_id)
        if not peer:
            return await self._here(identity, name, payload, response_timeout_s)
        question = [identity.device, identity.module, name, payload, response_timeout_s]
        status, answer, code, said = await self._bus.ask(
            peer, CALL, question, timeout_s=response_timeout_s + BUS_MARGIN_S
        )
        if code:
            raise _ERRORS.get(code, Unavailable)(said)
        return int(status), bytes(answer)

    async def _find(self, identity: Identity, timeout_s: float) -> str | None:
        """Who has the connection: a peer, `""` for this process, None for nobody within `timeout_s`."""

        async def here() -> str | None:
            return "" if self.reach is not None and await self._arrives(identity, timeout_s) else None

        async def there(peer: str) -> str | None:
            question = [identity.device, identity.module, timeout_s]
            try:
                return peer if await self._bus.ask(peer, FIND, question, timeout_s=timeout_s + BUS_MARGIN_S) else None
            except Unavailable:
                return None  # it died: its devices connect elsewhere

        tasks = [asyncio.ensure_future(here()), *(asyncio.ensure_future(there(peer)) for peer in self._bus.peers())]
        try:
            for done in asyncio.as_completed(tasks):
                found = await done
                if found is not None:
                    return found
            return None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _arrives(self, identity: Identity, timeout_s: float) -> bool:
        """Whether the identity listens here, within `timeout_s`."""
        assert self.reach is not None
        if self.reach.listens(identity) or timeout_s <= 0:
            return self.reach.listens(identity)
        event = asyncio.Event()
        events = self._arrivals.setdefault(identity.client_id, set())
        events.add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            events.discard(event)
            if not events:
                self._arrivals.pop(identity.client_id, None)
        return self.reach.listens(identity)

    async def _here(self, identity: Identity, name: str, payload: bytes, timeout_s: float) -> tuple[int, bytes]:
        assert self.reach is not None
        if len(self._asked) >= WAITING_MAX:
            raise Unavailable(f"{WAITING_MAX:,} methods wait for their answers", hint="ask again later")
        rid = self._random_bytes(RID_BYTES).hex()
        asked = _Asked(identity.client_id, asyncio.get_running_loop().create_future())
        self._asked[rid] = asked
        try:
            if not self.reach.ask(identity, name, rid, payload):
                raise _not_online(identity.client_id)
            return await asyncio.wait_for(asked.answer, timeout_s)
        except TimeoutError as exc:
            raise MethodTimeout(
                f"{identity.client_id!r} did not answer {name[:80]!r} within {timeout_s:g} s", hint="ask again later"
            ) from exc
        finally:
            del self._asked[rid]

    async def _find_for_peer(self, question: Any) -> bool:
        device, module, timeout_s = question
        if self.reach is None:
            return False
        return await self._arrives(Identity(device, module), min(timeout_s, CONNECT_TIMEOUT_MAX_S))

    async def _call_for_peer(self, question: Any) -> list[Any]:
        device, module, name, payload, timeout_s = question
        try:
            status, answer = await self._here(Identity(device, module), name, payload, timeout_s)
        except HeadraceError as exc:
            return [0, b"", exc.code, exc.message]
        return [status, answer, "", ""]


def _check(name: str, response_timeout_s: float, connect_timeout_s: float) -> None:
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise MethodInvalid(f"a method name of {len(name)} characters", hint=f"use 1 to {NAME_CHARS_MAX}")
    if not 0 < response_timeout_s <= RESPONSE_TIMEOUT_MAX_S:
        raise MethodInvalid(f"a response timeout of {response_timeout_s:g} s", hint="use 5 to 300 seconds")
    if not 0 <= connect_timeout_s <= CONNECT_TIMEOUT_MAX_S:
        raise MethodInvalid(f"a connect timeout of {connect_timeout_s:g} s", hint="use 0 to 300 seconds")


def _not_online(client_id: str) -> DeviceNotOnline:
    return DeviceNotOnline(
        f"{client_id!r} is not connected, or does not listen for methods", hint="give it a connect timeout"
    )
