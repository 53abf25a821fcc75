"""How documents are written down and compared, the same in every store.

Bodies are kept as JSON text, so a caller that later changes the object it gave, or one it got, changes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.core.clock import TICKS_PER_S
from headrace.core.errors import Conflict, UserError
from headrace.docstore.contract import ABSENT, ANY, Json

Scalar = str | int | float | bool | None

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Json)


def encode(body: Mapping[str, Any]) -> str:
    """JSON text of a body. NaN becomes null. Raises UserError for what JSON cannot hold."""
    try:
        return _encoder.encode(dict(body)).decode()
    except (TypeError, ValueError, msgspec.MsgspecError) as exc:
        raise UserError(f"a document must be JSON: {exc}", hint="store texts, numbers, lists and objects") from exc


def decode(text: str) -> Json:
    return _decoder.decode(text)


def expires_at(now: int, ttl_s: float | None) -> int | None:
    """Ticks at which a document written at `now` ends. Raises UserError for a lifetime that is not positive."""
    if ttl_s is None:
        return None
    if ttl_s <= 0:
        raise UserError(f"ttl_s is {ttl_s}", hint="give a positive number of seconds, or None for no end")
    return now + int(ttl_s * TICKS_PER_S)


def check_scalars(where: Mapping[str, Any]) -> dict[str, Scalar]:
    """The fields of a query. Raises UserError for a value that is not a scalar or a name that cannot be asked for."""
    for name, value in where.items():
        if not isinstance(value, str | int | float | bool | None):
            raise UserError(
                f"where {name!r} is a {type(value).__name__}", hint="compare with a text, number or boolean"
            )
        if '"' in name or "\\" in name:
            raise UserError(f"field name {name!r} cannot be queried", hint="use names without quotes and backslashes")
    return dict(where)


def check_match(collection: str, id: str, current: str | None, if_match: str | None) -> None:
    """Raise Conflict unless the precondition holds; `current` is the document's etag, None where there is none."""
    if if_match is None or (if_match == ABSENT and current is None) or (if_match == ANY and current is not None):
        return
    name = f"{collection}/{id}"
    if if_match == ABSENT:
        raise Conflict(
            f"{name} exists already", hint="choose another id, or change the one there", code="docstore.exists"
        )
    if current is None:
        raise Conflict(f"{name} does not exist", hint="it was deleted or never made", code="docstore.absent")
    if if_match != current:
        raise Conflict(f"{name} has etag {current!r}, not {if_match!r}", hint="read it again", code="docstore.etag")
