"""Cloud-to-device messages that no device took: rows of the stream `set_aside`.

Their event ids are derived from the letters', so a letter that is buried twice (a crash came between) is one row.
"""

from __future__ import annotations

import orjson

from headrace.core.identity import message_event_id
from headrace.core.schema import event_batch
from headrace.devices.mailbox import Letter, Outcome
from headrace.eventlog.contract import EventLog
from headrace.gateway.streams import SET_ASIDE

STAGE = "mailbox"
_REASONS: dict[Outcome, str] = {
    "Expired": "mail_expired",
    "Rejected": "mail_rejected",
    "DeliveryCountExceeded": "mail_delivery_count",
}


class DeadLetters:
    """What a Mailbox is given as `bury`."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    async def bury(self, letters: list[Letter], outcome: Outcome) -> None:
        """Durable when it returns. Raises Unavailable."""
        reason = _REASONS.get(outcome, outcome)
        said = [
            {
                "stage": STAGE,
                "reason": reason,
                "detail": f"delivered {letter.deliveries} times",
                "system": dict(letter.message.system),
                "application": dict(letter.message.application),
            }
            for letter in letters
        ]
        await self._events.append(
            SET_ASIDE,
            event_batch(
                {
                    "_event_id": [message_event_id(letter.device, None, letter.id) for letter in letters],
                    "_device": [letter.device for letter in letters],
                    "_type": [reason] * len(letters),
                    "_content_type": [letter.message.system.get("content-type") for letter in letters],
                    "_properties": [orjson.dumps(each).decode() for each in said],
                    "_body": [letter.message.body for letter in letters],
                }
            ),
        )
