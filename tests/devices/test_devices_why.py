"""Why a device is not connected: sentences from facts."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.clock import TICKS_PER_S
from headrace.devices.model import Device
from headrace.devices.why import ADVICE, Facts, explain

NOW = 17_356_896_000_000_000
PRESS = Device(id="press-7", entity_id="press-7", generation_id="g", created=0)


def ago(seconds: float) -> int:
    return NOW - int(seconds * TICKS_PER_S)


def presence(seconds: float, *, connected: bool = False, reason: str = "disconnected", **more: Any) -> dict[str, Any]:
    return {"connected": connected, "since": ago(seconds), "reason": reason, "address": "10.0.0.7", **more}


def refusal(reason: str, seconds: float, detail: str = "said so", count: int = 1) -> dict[str, Any]:
    known = {"count": count, "first": ago(seconds + 60), "last": ago(seconds), "address": "10.0.0.7"}
    return {
        "reason": reason,
        "detail": detail,
        "hint": "do that",
        "address": "10.0.0.7",
        "at": ago(seconds),
        "reasons": {reason: known},
    }


def facts(**known: Any) -> Facts:
    return Facts(**{"id": "press-7", "now": NOW, "device": PRESS, "host": "hub.example", **known})


def test_an_id_that_was_never_registered_is_told_with_the_nearest_name_and_who_tried() -> None:
    found = explain(facts(device=None, near="did you mean 'press-8'?", refusal=refusal("unknown_device", 5, count=3)))
    assert found.state == "unknown"
    assert found.sentences == [
        "There is no device 'press-7' in the registry. Did you mean 'press-8'?",
        "Refused from 10.0.0.7 5 seconds ago (this reason 3 times so far): said so.",
    ]
    assert found.advice == ["register it: headrace device create press-7"]


def test_a_wrong_key_after_the_last_connection_counts_more_than_how_that_ended() -> None:
    found = explain(facts(presence=presence(7200), refusal=refusal("token_signature", 30)))
    assert found.state == "refused"
    assert "ended 2 hours ago: the device said goodbye itself" in found.summary
    assert found.sentences[1].startswith("Refused from 10.0.0.7 30 seconds ago")
    assert "not its own" in found.advice[0]


def test_a_refusal_before_the_last_connection_is_over() -> None:
    found = explain(facts(presence=presence(30, reason="keep_alive"), refusal=refusal("token_signature", 7200)))
    assert found.state == "disconnected"
    assert "nothing was heard" in found.summary
    assert found.advice == ["nothing was refused: check that the device runs and reaches the hub at hub.example"]


def test_an_expired_token_names_the_clock() -> None:
    expired = refusal("token_expired", 3, "the token expired 7200 s ago")
    found = explain(facts(refusal=expired))
    assert found.sentences[0] == "'press-7' has never been connected."
    assert "2 hours too late means a clock at least that far behind" in found.sentences[2]
    assert "NTP" in found.advice[0]


def test_the_wrong_host_is_told_with_the_right_one() -> None:
    found = explain(facts(refusal=refusal("host", 3, "'old.example' is not this hub")))
    assert "'old.example' is not this hub" in found.sentences[1]
    assert "HostName=hub.example" in found.advice[0]


def test_two_clients_with_one_id_are_found_while_one_is_connected() -> None:
    history = [[ago(9), True, "", "10.0.0.7"], [ago(5), True, "", "10.0.0.8"]]
    here = presence(5, connected=True, reason="", history=history)
    found = explain(facts(presence=here, refusal=refusal("taken_over", 5, count=12)))
    assert found.state == "unstable"
    assert "that happened 12 times. They come from 10.0.0.7 and 10.0.0.8." in found.sentences[-1]
    assert "two clients use this id" in found.advice[0]


def test_a_disabled_device_says_why_it_was_disabled() -> None:
    off = Device(id="press-7", entity_id="p", generation_id="g", created=0, status="disabled", status_reason="stolen")
    found = explain(facts(device=off, presence=presence(60, reason="device_disabled")))
    assert (found.state, found.summary) == ("disabled", "'press-7' is disabled: stolen, so it is not let in.")


def test_who_is_connected_and_quiet_needs_no_advice() -> None:
    found = explain(facts(presence=presence(60, connected=True, reason=""), refusal=refusal("token_signature", 90)))
    assert (found.state, found.advice) == ("connected", [])
    assert found.sentences == ["'press-7' is connected, since 1 minute ago, from 10.0.0.7."]


def test_limits_that_hold_it_back_are_named() -> None:
    held = {"limit": "device_messages_per_s", "count": 1200, "waited_s": 8.25, "since": ago(90), "last": ago(1)}
    found = explain(facts(presence=presence(99, connected=True, reason=""), throttled=[held]))
    assert "[limits] device_messages_per_s: 1,200 times since 2024-12-31T23:58:30Z" in found.sentences[1]
    assert found.advice == ["let it send less, or raise [limits] device_messages_per_s"]


def test_a_failing_handshake_from_its_address_is_told() -> None:
    found = explain(facts(presence=presence(99), from_address=refusal("tls", 4, "no shared protocol")))
    assert "somebody was refused 4 seconds ago before saying a name: no shared protocol." in found.sentences[1]
    assert "CA file" in found.advice[0]


def test_a_hub_that_is_down_comes_first() -> None:
    found = explain(facts(presence=presence(99, connected=True, reason="gateway_stopped"), hub_running=False))
    assert found.state == "disconnected"
    assert found.summary.startswith("The hub is not running")
    assert found.advice[0] == "headrace up --detach"


@pytest.mark.parametrize("reason", sorted(ADVICE))
def test_every_advice_can_be_said(reason: str) -> None:
    found = explain(facts(device=None, refusal=refusal(reason, 5)))
    assert found.advice
    assert "{}" not in found.advice[0]
