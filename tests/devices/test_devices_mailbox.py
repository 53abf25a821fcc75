"""Mailboxes: order, bounds, expiry, locks, and what becomes of a message that nobody takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.core.clock import ManualClock, to_iso
from headrace.core.errors import UserError
from headrace.core.identity import EventIds
from headrace.devices.mailbox import (
    DELIVERIES_MAX,
    PENDING_MAX,
    Letter,
    LockLost,
    Mailbox,
    Message,
    MessageTooLarge,
    Outcome,
    QueueFull,
)
from headrace.docstore.contract import DocStore


class Grave:
    def __init__(self) -> None:
        self.letters: list[tuple[str, str]] = []

    async def bury(self, letters: list[Letter], outcome: Outcome) -> None:
        self.letters += [(letter.message.body.decode(), outcome) for letter in letters]


@pytest.fixture
def grave() -> Grave:
    return Grave()


@pytest.fixture
def mailbox(docs: DocStore, clock: ManualClock, grave: Grave) -> Mailbox:
    return Mailbox(docs, clock, EventIds(b"seed"), bury=grave.bury)


def message(body: str = "hello", ack: str = "", **system: str) -> Message:
    return Message(
        {name.replace("_", "-"): value for name, value in system.items()},
        {"iothub-ack": ack} if ack else {},
        body.encode(),
    )


async def bodies(mailbox: Mailbox, device: str = "a") -> list[str]:
    return [letter.message.body.decode() for letter in await mailbox.peek(device)]


async def outcomes(mailbox: Mailbox) -> list[tuple[str, str]]:
    return [(each.record["originalMessageId"], each.record["statusCode"]) for each in await mailbox.feedback()]


async def test_messages_wait_in_the_order_sent_each_device_its_own(mailbox: Mailbox, clock: ManualClock) -> None:
    for number in range(20):
        await mailbox.send("a", message(f"{number}"))
    clock.advance(1)
    await mailbox.send("a", message("last"))
    await mailbox.send("ab", message("other"))
    assert await bodies(mailbox) == [*map(str, range(20)), "last"]
    assert await bodies(mailbox, "ab") == ["other"]
    assert await mailbox.pending("a") == 21


async def test_a_sender_hears_the_message_id_given_or_made(mailbox: Mailbox) -> None:
    assert await mailbox.send("a", message(message_id="mine")) == "mine"
    made = await mailbox.send("a", message())
    assert [letter.message_id for letter in await mailbox.peek("a")] == ["mine", made]


async def test_above_fifty_the_sender_is_told(mailbox: Mailbox) -> None:
    for _ in range(PENDING_MAX):
        await mailbox.send("a", message())
    with pytest.raises(QueueFull) as caught:
        await mailbox.send("a", message())
    assert caught.value.code == "c2d.queue_full"
    await mailbox.send("b", message())


async def test_many_senders_at_once_do_not_overfill_a_queue(mailbox: Mailbox) -> None:
    sent = await asyncio.gather(*(mailbox.send("a", message()) for _ in range(70)), return_exceptions=True)
    assert [isinstance(each, QueueFull) for each in sent].count(True) == 20
    assert await mailbox.pending("a") == PENDING_MAX


async def test_a_message_above_64_kb_is_refused(mailbox: Mailbox) -> None:
    await mailbox.send("a", message("x" * 65_530, ack=""))
    with pytest.raises(MessageTooLarge):
        await mailbox.send("a", message("x" * 65_530, correlation_id="1234567"))


async def test_an_expiry_of_its_own_beats_the_usual_hour(mailbox: Mailbox, clock: ManualClock, grave: Grave) -> None:
    await mailbox.send("a", message("usual"))
    await mailbox.send("a", message("soon", absolute_expiry_time=to_iso(clock.now() + 10_000_000)))
    await mailbox.send("a", message("late", absolute_expiry_time=to_iso(clock.now() + 90_000_000_000)))
    clock.advance(2)
    assert await bodies(mailbox) == ["usual", "late"]
    clock.advance(3600)
    assert await bodies(mailbox) == ["late"]
    assert grave.letters == [("soon", "Expired"), ("usual", "Expired")]


@pytest.mark.parametrize("time", ["tomorrow", "2000-01-01T00:00:00Z"])
async def test_an_expiry_that_is_no_time_or_has_passed_is_refused(mailbox: Mailbox, time: str) -> None:
    with pytest.raises(UserError):
        await mailbox.send("a", message(absolute_expiry_time=time))
    assert await mailbox.pending("a") == 0


async def test_the_sweep_ends_expired_messages_of_devices_that_never_ask(
    mailbox: Mailbox, clock: ManualClock, grave: Grave
) -> None:
    await mailbox.send("a", message("one"))
    await mailbox.send("b", message("two"), ttl_s=7200)
    clock.advance(3601)
    assert await mailbox.expire() == 1
    assert grave.letters == [("one", "Expired")]


async def test_a_locked_message_is_nobody_elses_until_its_lock_runs_out(mailbox: Mailbox, clock: ManualClock) -> None:
    await mailbox.send("a", message("one"))
    await mailbox.send("a", message("two"))
    first, second = await mailbox.lock("a"), await mailbox.lock("a")
    assert first is not None
    assert second is not None
    assert (first.message.body, second.message.body) == (b"one", b"two")
    assert await mailbox.lock("a") is None
    assert await mailbox.pending("a") == 2
    clock.advance(61)
    with pytest.raises(LockLost):
        await mailbox.complete("a", first.lock)
    again = await mailbox.lock("a")
    assert again is not None
    assert (again.message.body, again.deliveries) == (b"one", 2)
    await mailbox.complete("a", again.lock)
    assert await bodies(mailbox) == ["two"]


async def test_a_message_given_back_ten_times_is_set_aside(mailbox: Mailbox, grave: Grave) -> None:
    await mailbox.send("a", message("hot", ack="negative", message_id="m1"))
    for _ in range(DELIVERIES_MAX):
        held = await mailbox.lock("a")
        assert held is not None
        await mailbox.abandon("a", held.lock)
    assert await mailbox.pending("a") == 0
    assert grave.letters == [("hot", "DeliveryCountExceeded")]
    assert await outcomes(mailbox) == [("m1", "DeliveryCountExceeded")]


@pytest.mark.parametrize(
    ("ack", "expected"),
    [
        ("", []),
        ("none", []),
        ("positive", ["Success"]),
        ("negative", ["Rejected", "Purged", "Expired"]),
        ("full", ["Success", "Rejected", "Purged", "Expired"]),
    ],
)
async def test_feedback_comes_for_what_the_sender_asked(
    mailbox: Mailbox, clock: ManualClock, ack: str, expected: list[str]
) -> None:
    await mailbox.send("a", message("done", ack=ack))
    held = await mailbox.lock("a")
    assert held is not None
    await mailbox.complete("a", held.lock)
    await mailbox.send("a", message("refused", ack=ack))
    held = await mailbox.lock("a")
    assert held is not None
    clock.advance(1)
    await mailbox.reject("a", held.lock)
    clock.advance(1)
    await mailbox.send("a", message("purged", ack=ack))
    assert await mailbox.purge("a") == 1
    clock.advance(1)
    await mailbox.send("a", message("expired", ack=ack), ttl_s=60)
    clock.advance(61)
    assert await mailbox.pending("a") == 0
    assert [status for _, status in await outcomes(mailbox)] == expected
    await mailbox.feedback_done([each.id for each in await mailbox.feedback()])
    assert await mailbox.feedback() == []


async def test_completing_by_letter_a_second_time_is_no_error(mailbox: Mailbox) -> None:
    await mailbox.send("a", message("one"))
    (letter,) = await mailbox.peek("a")
    await mailbox.complete("a", letter.id)
    await mailbox.complete("a", letter.id)
    assert await mailbox.pending("a") == 0


async def test_mail_is_told_after_it_is_durable(mailbox: Mailbox, docs: DocStore) -> None:
    told: list[Any] = []
    mailbox.on_mail.append(told.append)
    await mailbox.send("a", message())
    assert told == ["a"]
