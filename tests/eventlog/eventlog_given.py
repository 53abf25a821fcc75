"""What tests of the event log are given: events to append, and ways to open a log."""

import random
from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from headrace.core.identity import message_event_id
from headrace.core.schema import EventBatch, event_batch
from headrace.eventlog.sqlite import SqliteEventLog

OpenLog = Callable[..., SqliteEventLog]


class Events(Protocol):
    def __call__(self, first: int, count: int, *, noise: random.Random | None = None) -> EventBatch: ...


def make_events(first: int, count: int, *, noise: random.Random | None = None) -> EventBatch:
    """Resendable events number `first` and following of seven devices. The body is the number, or a kilobyte of noise."""
    numbers = range(first, first + count)
    names = [f"device-{number % 7}" for number in numbers]
    ids = [message_event_id(name, None, str(number)) for name, number in zip(names, numbers, strict=True)]
    bodies = [noise.randbytes(1000) if noise else str(number).encode() for number in numbers]
    return event_batch({"_event_id": ids, "_device": names, "_body": pa.array(bodies, pa.binary())})
