"""Direct methods over MQTT, without sockets."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from gateway_parts import Parts, until
from hub_client import arrives, listening, say

from headrace.core.errors import HeadraceError
from headrace.gateway.methods import DeviceNotOnline, MethodAnswerInvalid, MethodInvalid, MethodTimeout, MethodTooLarge
from headrace.wire.iothub.topics import Identity

A = Identity("a")


def invoke(parts: Parts, name: str = "stop", payload: Any = None, **how: Any) -> asyncio.Task[tuple[int, Any]]:
    return asyncio.create_task(parts.methods.invoke(A, name, payload, **how))


def rid_of(topic: str) -> str:
    return topic.partition("$rid=")[2]


@pytest.mark.parametrize("payload", [None, {"speed": 5}, "text", [1, None]])
async def test_a_method_reaches_the_device_and_its_answer_comes_back(parts: Parts, payload: Any) -> None:
    connection, wire = await listening(parts)
    call = invoke(parts, "set speed/now", payload)
    (asked,) = await arrives(wire)
    assert re.fullmatch(r"\$iothub/methods/POST/set%20speed%2Fnow/\?\$rid=[0-9a-f]{24}", asked.topic)
    assert asked.json == payload
    say(connection, f"$iothub/methods/res/201/?$rid={rid_of(asked.topic)}", b'{"ok": true}', 3)
    assert await call == (201, {"ok": True})
    assert wire.written == b"\x40\x02\x00\x03"


async def test_an_empty_answer_is_null(parts: Parts) -> None:
    connection, wire = await listening(parts)
    call = invoke(parts)
    (asked,) = await arrives(wire)
    say(connection, f"$iothub/methods/res/-1/?$rid={rid_of(asked.topic)}", b"")
    assert await call == (-1, None)


async def test_another_device_cannot_answer(parts: Parts) -> None:
    connection, wire = await listening(parts)
    other, _ = await listening(parts, "b")
    call = invoke(parts)
    (asked,) = await arrives(wire)
    say(other, f"$iothub/methods/res/200/?$rid={rid_of(asked.topic)}", b'"forged"')
    say(connection, f"$iothub/methods/res/200/?$rid={rid_of(asked.topic)}", b'"mine"')
    assert await call == (200, "mine")


async def test_a_late_an_unknown_and_a_second_answer_are_ignored(parts: Parts) -> None:
    connection, wire = await listening(parts)
    say(connection, "$iothub/methods/res/200/?$rid=nobody", b"{}")
    call = invoke(parts)
    (asked,) = await arrives(wire)
    for text in (b"1", b"2"):
        say(connection, f"$iothub/methods/res/200/?$rid={rid_of(asked.topic)}", text)
    assert await call == (200, 1)
    assert not wire.closed


async def test_a_device_that_is_away_or_does_not_listen_is_not_online(parts: Parts) -> None:
    with pytest.raises(DeviceNotOnline):
        await invoke(parts)
    await listening(parts, "a", "$iothub/twin/res/#")
    with pytest.raises(DeviceNotOnline):
        await invoke(parts)


async def test_a_device_that_comes_within_the_connect_timeout_is_asked(parts: Parts) -> None:
    call = invoke(parts, connect_timeout_s=5)
    for _ in range(20):
        await asyncio.sleep(0)
    connection, wire = await listening(parts)
    (asked,) = await arrives(wire)
    say(connection, f"$iothub/methods/res/200/?$rid={rid_of(asked.topic)}", b"1")
    assert await call == (200, 1)


async def test_no_answer_in_time_is_a_timeout(parts: Parts) -> None:
    await listening(parts)
    with pytest.raises(MethodTimeout):
        await invoke(parts, response_timeout_s=0.01)


async def test_a_device_that_leaves_during_a_call_is_not_online(parts: Parts) -> None:
    connection, wire = await listening(parts)
    call = invoke(parts)
    await arrives(wire)
    connection.connection_lost(None)
    with pytest.raises(DeviceNotOnline):
        await call


async def test_nothing_is_kept_of_calls_that_ended(parts: Parts) -> None:
    await listening(parts)
    for how in ({"response_timeout_s": 0.001}, {"response_timeout_s": 0.001, "connect_timeout_s": 0.001}):
        with pytest.raises(HeadraceError):
            await invoke(parts, **how)
    with pytest.raises(DeviceNotOnline):
        await parts.methods.invoke(Identity("b"), "x", None, connect_timeout_s=0.001)
    await until(lambda: not parts.methods._asked and not parts.methods._arrivals)


@pytest.mark.parametrize(("answer", "why"), [(b"{", "not JSON"), (b'"' + b"x" * 131_072 + b'"', "above")])
async def test_an_answer_that_is_no_json_or_too_long_is_the_devices_mistake(answer: bytes, why: str) -> None:
    parts = Parts(message_bytes_max=262_144)
    connection, wire = await listening(parts)
    call = invoke(parts)
    (asked,) = await arrives(wire)
    say(connection, f"$iothub/methods/res/200/?$rid={rid_of(asked.topic)}", answer)
    with pytest.raises(MethodAnswerInvalid, match=why):
        await call


@pytest.mark.parametrize(
    ("name", "how"),
    [("", {}), ("n" * 101, {}), ("n", {"response_timeout_s": 301}), ("n", {"connect_timeout_s": -1})],
)
async def test_a_question_that_makes_no_sense_is_refused(parts: Parts, name: str, how: dict[str, float]) -> None:
    with pytest.raises(MethodInvalid):
        await invoke(parts, name, **how)


async def test_a_payload_above_the_limit_is_refused(parts: Parts) -> None:
    with pytest.raises(MethodTooLarge):
        await invoke(parts, payload="x" * 131_072)
