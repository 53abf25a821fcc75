"""Cloud-to-device messages over HTTPS: services send and purge, devices receive, complete, reject and abandon.

What a message says of itself stands in headers: `iothub-messageid`, `iothub-ack`, `iothub-app-{name}` and so on. Header names
have no case, so names of application properties come through in lower case.
"""

from __future__ import annotations

import string
from urllib.parse import quote

from headrace.core.clock import to_iso
from headrace.devices.mailbox import Letter, Message
from headrace.gateway.rest.errors import INVALID, Denied
from headrace.gateway.rest.exchange import Answer, Request, answer_json
from headrace.gateway.rest.services import HubServices

SYSTEM_HEADERS = {
    "iothub-messageid": "message-id",
    "iothub-correlationid": "correlation-id",
    "iothub-userid": "user-id",
    "iothub-contenttype": "content-type",
    "iothub-contentencoding": "content-encoding",
    "iothub-expiry": "absolute-expiry-time",
}
PLAIN_HEADERS = {"content-type": "content-type", "content-encoding": "content-encoding"}
APPLICATION_PREFIX = "iothub-app-"
ACK = "iothub-ack"
ACKS = ("none", "positive", "negative", "full")
_NAMES = string.ascii_letters + string.digits + "!#$&'*+-.^_`|~"
_VALUES = "".join(map(chr, range(0x20, 0x7F)))


class Messages:
    def __init__(self, services: HubServices) -> None:
        self._services = services

    async def send(self, request: Request, device: str) -> Answer:
        """Durable when it is answered; the answer names the message in `iothub-messageid`."""
        view = await self._services.view(device)
        system: dict[str, str | None] = {"to": f"/devices/{device}/messages/devicebound"}
        application: dict[str, str | None] = {}
        for name, value in request.headers.items():
            if name in SYSTEM_HEADERS:
                system[SYSTEM_HEADERS[name]] = value
            elif name in PLAIN_HEADERS:
                system.setdefault(PLAIN_HEADERS[name], value)
            elif name.startswith(APPLICATION_PREFIX):
                application[_property(name)] = value
        if (ack := request.headers.get(ACK, "none").lower()) not in ACKS:
            raise Denied(INVALID, f"{ACK} is {ack[:40]!r}", hint=f"use {', '.join(ACKS)}")
        if ack != "none":
            application[ACK] = ack
        message = Message(system, application, await request.body())
        id = await self._services.mailbox.send(device, message, generation=view.device.generation_id)
        return Answer(204, headers={"iothub-messageid": quote(id, safe=_VALUES)})

    async def purge(self, request: Request, device: str) -> Answer:
        await self._services.view(device)
        purged = await self._services.mailbox.purge(device)
        return answer_json({"deviceId": device, "moduleId": None, "totalMessagesPurged": purged})

    async def receive(self, request: Request, device: str) -> Answer:
        """The oldest message, locked for a minute; 204 when there is none."""
        letter = await self._services.mailbox.lock(device)
        if letter is None:
            return Answer(204)
        return Answer(200, letter.message.body, _headers(letter))

    async def complete(self, request: Request, device: str, lock: str) -> Answer:
        if "reject" in request.query:
            await self._services.mailbox.reject(device, _token(lock))
        else:
            await self._services.mailbox.complete(device, _token(lock))
        return Answer(204)

    async def abandon(self, request: Request, device: str, lock: str) -> Answer:
        await self._services.mailbox.abandon(device, _token(lock))
        return Answer(204)


def _property(header: str) -> str:
    """Raises Denied (400) for a property without a name."""
    if header == APPLICATION_PREFIX:
        raise Denied(INVALID, "an application property without a name", hint="iothub-app-{name}: value")
    return header.removeprefix(APPLICATION_PREFIX)


def _token(lock: str) -> str:
    """A lock's token. A letter's id, which holds a slash, is none: only MQTT completes by it."""
    return lock.strip('"').replace("/", "_")


def _headers(letter: Letter) -> dict[str, str]:
    """What is not printable is percent-encoded, so that no value can begin another header."""
    found = {
        "content-type": "application/octet-stream",
        "etag": f'"{letter.lock}"',
        "iothub-enqueuedtime": to_iso(letter.enqueued),
        "iothub-expiry": to_iso(letter.expires),
        "iothub-deliverycount": str(letter.deliveries - 1),
        "iothub-to": f"/devices/{quote(letter.device, safe='')}/messages/deviceBound",
    }
    for header, name in [*SYSTEM_HEADERS.items(), *PLAIN_HEADERS.items()]:
        if (value := letter.message.system.get(name)) and header != "iothub-expiry":
            found[header] = quote(value, safe=_VALUES)
    for name, value in letter.message.application.items():
        header = ACK if name == ACK else f"{APPLICATION_PREFIX}{quote(name, safe=_NAMES)}"
        found[header] = quote(value or "", safe=_VALUES)
    return found
