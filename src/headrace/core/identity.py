"""Identifiers of events, and the partition that a device belongs to.

An id that starts with `m` was derived from a device's own message id: the same message sent again gets the same id, so
logs de-duplicate exactly these. Every other id is unique by construction.
"""

from __future__ import annotations

import hashlib
import zlib

RESENDABLE = "m"


def message_event_id(device: str, module: str | None, message_id: str) -> str:
    """The event id of a message that carries an id of the device's own: `m` and 32 hexadecimal digits."""
    text = f"{device}\0{module or ''}\0{message_id}".encode()
    return RESENDABLE + hashlib.blake2b(text, digest_size=16).hexdigest()


def derived_event_id(producer: str, epoch: int, index: int) -> str:
    """The event id of row `index` that `producer` (a job's output, say) writes in `epoch`: the same on every replay."""
    text = f"{producer}\0{epoch}".encode()
    return f"d{hashlib.blake2b(text, digest_size=10).hexdigest()}-{index}"


class EventIds:
    """Ids for events that came without one: a random prefix for this process, then a counter."""

    def __init__(self, entropy: bytes) -> None:
        self._prefix = "h" + hashlib.blake2b(entropy, digest_size=9).hexdigest() + "-"
        self._next = 0

    def take(self) -> str:
        self._next += 1
        return f"{self._prefix}{self._next:x}"


def partition_of(device: str, partitions: int) -> int:
    """The partition of a device: CRC-32 of its UTF-8 name, so that every process and language can compute it."""
    return zlib.crc32(device.encode()) % partitions
