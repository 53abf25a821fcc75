"""User names, telemetry topics and filters of IoT Hub's dialect."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.iothub.topics import (
    BadUserName,
    Identity,
    bag_of,
    may_subscribe,
    parse_user_name,
    telemetry_prefix,
    user_name,
)

DEVICE, MODULE = Identity("a"), Identity("a", "m")


@pytest.mark.parametrize(
    "text",
    [
        "Hub:8883/a",
        "hub/a/",
        "hub/a/api-version=2016-11-14",
        "hub/a/?api-version=2019-10-01&DeviceClientType=py%2F2.14",
        "hub/a/?api-version=2020-09-30&model-id=dtmi:x;1",
    ],
)
def test_every_form_of_user_name_names_the_device(text: str) -> None:
    assert parse_user_name(text) == ("hub", DEVICE)


def test_a_module_is_named_behind_its_device() -> None:
    assert parse_user_name(user_name("hub", MODULE)).identity == MODULE
    assert parse_user_name("hub/a/m").identity == MODULE
    assert MODULE.client_id == "a/m"


@pytest.mark.parametrize("text", ["", "hub", "hub/", "/a", "hub//m", "hub/a/b/c", "hub/a/b/c/?api-version=1"])
def test_a_user_name_without_a_device_is_refused(text: str) -> None:
    with pytest.raises(BadUserName):
        parse_user_name(text)


@given(st.text(max_size=40))
def test_any_user_name_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(BadUserName):
        parse_user_name(text)


@pytest.mark.parametrize(
    ("topic", "bag"),
    [
        (b"devices/a/messages/events/", b""),
        (b"devices/a/messages/events", b""),
        (b"devices/a/messages/events/%24.mid=1&k=v", b"%24.mid=1&k=v"),
        (b"devices/b/messages/events/", None),
        (b"devices/ab/messages/events/", None),
        (b"devices/a/messages/eventsX", None),
        (b"$iothub/twin/GET/?$rid=1", None),
    ],
)
def test_only_the_own_telemetry_topic_has_a_bag(topic: bytes, bag: bytes | None) -> None:
    assert bag_of(topic, telemetry_prefix(DEVICE)) == bag


def test_filters_are_granted_to_their_owner_only() -> None:
    assert may_subscribe("devices/a/messages/devicebound/#", DEVICE)
    assert may_subscribe("$iothub/twin/PATCH/properties/desired/#", DEVICE)
    assert may_subscribe("devices/a/modules/m/inputs/#", MODULE)
    for wanted in ("#", "devices/b/messages/devicebound/#", "devices/a/#", "$IOTHUB/methods/POST/#", "devices/+/x"):
        assert not may_subscribe(wanted, DEVICE)
