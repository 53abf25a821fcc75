"""One device can neither write nor read what is another's: topics, twin, methods, mail; nor come in by its token."""

from __future__ import annotations

import asyncio
import base64
import random

import pytest
from gateway_parts import OTHER_KEY, Parts, device
from hub_client import ALL, listening, messages, nothing_arrives, say
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.clock import TICKS_PER_S
from headrace.devices.mailbox import Message
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity
from headrace.wire.mqtt import codec

FOREIGN_EVENTS = [
    "devices/b/messages/events/",
    "devices/b/messages/events/$.mid=1",
    "devices/a/modules/m/messages/events/",
    "devices/b/modules/m/messages/events/",
    "devices/a/../b/messages/events/",
    "devices/A/messages/events/",
    "devices/a%2f..%2fb/messages/events/",
    "/devices/a/messages/events/",
    "devices//messages/events/",
]
FOREIGN_FILTERS = [
    "#",
    "+/b/#",
    "devices/#",
    "devices/+/messages/devicebound/#",
    "devices/b/messages/devicebound/#",
    "devices/b/messages/events/#",
    "devices/b/modules/m/#",
    "devices/a/modules/m/messages/devicebound/#",
    "$iothub/#",
    "$iothub/methods/#",
    "$iothub/+/POST/#",
    "$iothub/twin/PATCH/properties/reported/#",
    "$share/g/devices/b/messages/devicebound/#",
    "$SYS/#",
    "+",
    "",
]


@pytest.fixture
def parts() -> Parts:
    return Parts()


async def stored_of(parts: Parts, id: str) -> int:
    """Events in the log that say they are of a device."""
    await parts.settle()
    found = 0
    starts, ends = await parts.log.bounds("telemetry")
    for partition, (at, end) in enumerate(zip(starts, ends, strict=True)):
        if at < end:
            batch = await parts.log.read("telemetry", partition, at, rows_max=1000, wait_s=0)
            found += batch.column("_device").to_pylist().count(id)
    return found


@pytest.mark.parametrize("topic", FOREIGN_EVENTS)
async def test_no_message_is_taken_for_anybody_elses(parts: Parts, topic: str) -> None:
    connection, wire = parts.connected("a")
    connection.data_received(codec.encode_publish(topic.encode(), b"{}", packet_id=1))
    assert wire.closed
    assert b"\x40\x02" not in wire.written
    assert await stored_of(parts, "b") == 0


@pytest.mark.parametrize("topic_filter", FOREIGN_FILTERS)
async def test_no_filter_but_the_own_is_granted(parts: Parts, topic_filter: str) -> None:
    connection, wire = parts.connected("a", clean_session=True)
    connection.data_received(codec.encode_subscribe(3, [(topic_filter, 1)]))
    assert wire.closed or wire.written == codec.encode_suback(3, [codec.FILTER_REFUSED])
    assert topic_filter not in connection.filters


async def test_what_is_sent_to_one_device_no_other_hears(parts: Parts) -> None:
    own = "devices/a/messages/devicebound/#"
    a, wire_a = await listening(parts, "a", *ALL, own)
    _, wire_b = await listening(parts, "b")
    identity = Identity("a")
    await parts.mailbox.send(identity.device, Message({}, {}, b"for a"))
    call = asyncio.create_task(parts.methods.invoke(identity, "open", {}, response_timeout_s=5))
    for _ in range(300):
        await asyncio.sleep(0)
    heard = [each.topic for each in messages(wire_a)]
    assert any(topic.startswith("$iothub/methods/POST/open/") for topic in heard)
    assert any(topic.startswith("devices/a/messages/devicebound/") for topic in heard)
    await nothing_arrives(wire_b)
    rid = next(topic for topic in heard if "methods" in topic).rpartition("=")[2]
    say(a, f"$iothub/methods/res/200/?$rid={rid}", b"1")
    assert await asyncio.wait_for(call, 5) == (200, 1)


async def test_a_report_changes_the_twin_of_the_connection_alone(parts: Parts) -> None:
    a, wire = await listening(parts, "a")
    before = await parts.twins.get(Identity("b"))
    for number, topic in enumerate(
        ("$iothub/twin/PATCH/properties/reported/?$rid=1&deviceId=b", "$iothub/twin/PATCH/properties/reported/?$rid=2")
    ):
        say(a, topic, b'{"seen":%d,"deviceId":"b"}' % number)
    for _ in range(300):
        await asyncio.sleep(0)
    assert messages(wire)
    assert await parts.twins.get(Identity("b")) == before


def tokens(parts: Parts) -> dict[str, bytes]:
    """By what is wrong with them, as passwords of the device `a`."""
    good, soon = parts.token("a").decode(), parts.clock.now() // TICKS_PER_S + 3600
    fields = dict(part.split("=", 1) for part in good.removeprefix("SharedAccessSignature ").split("&"))

    def made(**changes: str) -> bytes:
        return ("SharedAccessSignature " + "&".join(f"{k}={v}" for k, v in {**fields, **changes}.items())).encode()

    stranger = base64.b64encode(b"x" * 32).decode()
    return {
        "another device's": parts.token("b"),
        "a stranger's key": parts.token("a", stranger),
        "expired": parts.token("a", ttl_s=-4000),
        "longer than it was signed for": made(se=str(soon + 86_400)),
        "of another resource than it was signed for": made(sr="hub%2Fdevices"),
        "of another hub": sas.build("elsewhere/devices/a", OTHER_KEY, expires_s=soon).encode(),
        "with an empty signature": made(sig=""),
        "of a policy that is none": made(skn="iothubowner"),
        "without a scheme": good.removeprefix("SharedAccessSignature ").encode(),
        "nothing": b"",
        "not text": b"\xff\xfe\x00",
    }


@pytest.mark.parametrize("what", list(tokens(Parts())))
async def test_a_token_that_is_not_good_opens_nothing(parts: Parts, what: str) -> None:
    connection, wire = parts.dial()
    connection.data_received(parts.hello("a", password=tokens(parts)[what]))
    for _ in range(200):
        await asyncio.sleep(0)
    assert wire.closed
    assert wire.written[3:4] in (b"\x04", b"\x05")
    assert connection.identity is None


async def test_the_tokens_of_this_test_are_wrong_for_one_reason_only(parts: Parts) -> None:
    connection, _ = parts.connected("a", password=parts.token("a"))
    assert connection.identity == Identity("a")
    assert device("a").enabled


def flipped(token: bytes, at: int, bit: int) -> bytes:
    at %= len(token)
    return token[:at] + bytes([token[at] ^ (1 << bit)]) + token[at + 1 :]


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_bit_of_a_token_can_be_changed_to_open_more(at: int, bit: int) -> None:
    """What still opens (a change of letters' case in names, say) opens the same and no longer."""

    async def work() -> None:
        parts = Parts()
        good = parts.token("a")
        connection, wire = parts.dial()
        connection.data_received(parts.hello("a", password=flipped(good, at, bit)))
        for _ in range(50):
            await asyncio.sleep(0)
        if connection.identity is None:
            assert wire.closed
            return
        changed = sas.parse(flipped(good, at, bit).decode())
        honest = sas.parse(good.decode())
        assert (changed.expires_s, changed.signature) == (honest.expires_s, honest.signature)

    asyncio.run(work())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_no_packets_of_one_device_disturb_another(seed: int) -> None:
    """Valid, cut, foreign and random packets, in any order and in any pieces."""
    rng = random.Random(seed)

    async def work() -> None:
        parts = Parts()
        _, wire_b = await listening(parts, "b")
        twin_b = await parts.twins.get(Identity("b"))
        connection, wire = parts.connected("a", clean_session=True)
        for _ in range(rng.randrange(1, 12)):
            topic = rng.choice(
                [
                    *FOREIGN_EVENTS,
                    "devices/a/messages/events/",
                    "$iothub/twin/GET/?$rid=1",
                    "$iothub/twin/PATCH/properties/reported/?$rid=2",
                    "$iothub/methods/res/200/?$rid=" + "0" * 24,
                ]
            )
            packet = rng.choice(
                [
                    codec.encode_publish(topic.encode(), rng.randbytes(rng.randrange(40)), packet_id=rng.randrange(3)),
                    codec.encode_subscribe(2, [(rng.choice([*FOREIGN_FILTERS[:-1], *ALL]), rng.randrange(2))]),
                    rng.randbytes(rng.randrange(1, 60)),
                ]
            )
            packet = packet[: rng.randrange(1, len(packet) + 1)] if rng.random() < 0.2 else packet
            while packet and not wire.closed:
                cut = rng.randrange(1, len(packet) + 1)
                connection.data_received(packet[:cut])
                packet = packet[cut:]
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not wire_b.closed
        assert messages(wire_b) == []
        assert await parts.twins.get(Identity("b")) == twin_b
        assert await stored_of(parts, "b") == 0

    asyncio.run(work())
