"""One request and its answer, between ASGI and the handlers.

Ids stand percent-encoded in a path and are decoded after it was cut, so an encoded slash never makes another path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec
import orjson

from headrace.gateway.http import shown_in
from headrace.gateway.rest.errors import INVALID, TOO_LARGE, Denied

BODY_BYTES_MAX = 8 * 1_048_576  # 100 devices with twins as large as they may be
BODY_TIMEOUT_S = 30.0
T = TypeVar("T")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Request:
    """What a client asks. The body is read when a handler asks for it, after the caller was admitted."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        raw = str(scope["raw_path"].decode("latin-1")).partition("?")[0]
        self.method = str(scope["method"])
        self.segments = [unquote(part) for part in raw.strip("/").split("/")]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.query = parse_qs(
            scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, max_num_fields=50
        )
        self.shown = shown_in(scope)  # the certificate that the client has shown
        self.address = str((scope.get("client") or ("",))[0])
        self._receive = receive

    @property
    def path(self) -> str:
        """Decoded, without the slash in front: what tokens are checked against."""
        return "/".join(self.segments)

    @property
    def if_match(self) -> str | None:
        """An etag without quotes, or `*`; None where there is no such header."""
        given = self.headers.get("if-match")
        return None if given is None else given.strip().removeprefix("W/").strip('"')

    def number(self, name: str, text: str | None, *, default: int) -> int:
        """A whole number of a header or of the query. Raises Denied (400)."""
        if text is None or not text.strip():
            return default
        try:
            return int(text)
        except ValueError as exc:
            raise Denied(INVALID, f"{name} is {text[:40]!r}", hint="give a whole number") from exc

    async def body(self) -> bytes:
        """Raises Denied for one that is too large, too slow or incomplete."""
        try:
            return await asyncio.wait_for(self._read(), BODY_TIMEOUT_S)
        except TimeoutError as exc:
            raise Denied(INVALID, "the body did not come in time", hint="send it at once") from exc

    async def json(self) -> Any:
        """The body as a JSON value. Raises Denied (400)."""
        try:
            return orjson.loads(await self.body())
        except orjson.JSONDecodeError as exc:
            raise Denied(INVALID, f"the body is not JSON: {exc}", hint="send JSON in UTF-8") from exc

    async def struct(self, kind: type[T]) -> T:
        """The body as `kind`. Raises Denied (400) that names the field."""
        return converted(await self.json(), kind)

    async def _read(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Denied(INVALID, "the connection ended inside the body", hint="send it again")
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                raise Denied(TOO_LARGE, f"a body above {BODY_BYTES_MAX:,} bytes", hint="send less at once")
            if not message.get("more_body", False):
                return bytes(body)


class Answer(NamedTuple):
    """What is sent back; `body` None is no body at all."""

    status: int
    body: bytes | None = None
    headers: Mapping[str, str] = {}

    async def send(self, send: Send) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        if self.body is not None:
            if "content-type" not in self.headers:
                headers.append((b"content-type", b"application/json; charset=utf-8"))
            headers.append((b"content-length", str(len(self.body)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body or b""})


def answer_json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, msgspec.json.encode(value), headers or {})


def converted(value: Any, kind: type[T]) -> T:
    """A JSON value as a struct. Raises Denied (400) that names the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise Denied(INVALID, f"the body is wrong: {exc}", hint="send what IoT Hub takes") from exc
