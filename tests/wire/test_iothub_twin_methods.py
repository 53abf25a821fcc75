"""Topics of twins and methods, bags of cloud-to-device messages, and what the hub stamps."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.iothub.methods import MethodAnswer, parse_answer, question_topic
from headrace.wire.iothub.properties import decode_bag, encode_mail_bag, stamps
from headrace.wire.iothub.topics import Identity, mail_filter, mail_topic, may_subscribe, model_id_of
from headrace.wire.iothub.twin import (
    BadTwinRequest,
    TwinGet,
    TwinReport,
    answer_topic,
    desired_topic,
    parse_request,
)
from headrace.wire.mqtt import codec

REPORT = b"$iothub/twin/PATCH/properties/reported/"


@pytest.mark.parametrize(
    ("topic", "request_"),
    [
        (b"$iothub/twin/GET/?$rid=1", TwinGet(b"1")),
        (b"$iothub/twin/GET/?x=2&$rid=a-b", TwinGet(b"a-b")),
        (REPORT + b"?$rid=1", TwinReport(b"1", None)),
        (REPORT + b"?$rid=1&$version=12", TwinReport(b"1", 12)),
        (b"$iothub/twin/PATCH/properties/desired/?$rid=1", None),
        (b"$iothub/twin/GETTING/?$rid=1", None),
        (b"$iothub/methods/res/200/?$rid=1", None),
        (b"", None),
    ],
)
def test_twin_requests_are_read(topic: bytes, request_: TwinGet | TwinReport | None) -> None:
    assert parse_request(topic) == request_


@pytest.mark.parametrize(
    ("topic", "rid"),
    [
        (b"$iothub/twin/GET/", b""),
        (b"$iothub/twin/GET", b""),
        (b"$iothub/twin/GET/?$rid=", b""),
        (REPORT + b"?$rid=7&$version=", b"7"),
        (REPORT + b"?$rid=7&$version=-1", b"7"),
        (REPORT + b"?$rid=7&$version=" + b"9" * 19, b"7"),
    ],
)
def test_a_twin_request_that_makes_no_sense_says_where_to_answer(topic: bytes, rid: bytes) -> None:
    with pytest.raises(BadTwinRequest) as caught:
        parse_request(topic)
    assert caught.value.rid == rid


def test_twin_answers_have_a_value_to_every_key() -> None:
    assert answer_topic(200, b"x") == b"$iothub/twin/res/200/?$rid=x"
    assert answer_topic(204, b"x", 3) == b"$iothub/twin/res/204/?$rid=x&$version=3"
    assert desired_topic(4) == b"$iothub/twin/PATCH/properties/desired/?$version=4"


@pytest.mark.parametrize(
    ("topic", "answer"),
    [
        (b"$iothub/methods/res/200/?$rid=ab", MethodAnswer("ab", 200)),
        (b"$iothub/methods/res/-5/?$rid=ab", MethodAnswer("ab", -5)),
        (b"$iothub/methods/res/200/?$rid=", None),
        (b"$iothub/methods/res/200", None),
        (b"$iothub/methods/res//?$rid=ab", None),
        (b"$iothub/methods/res/99999999999/?$rid=ab", None),
        (b"$iothub/methods/res/2147483648/?$rid=ab", None),
        (b"$iothub/methods/POST/x/?$rid=ab", None),
    ],
)
def test_method_answers_are_read(topic: bytes, answer: MethodAnswer | None) -> None:
    assert parse_answer(topic) == answer


def test_a_method_name_cannot_leave_its_place_in_the_topic() -> None:
    assert question_topic("a/b?$rid=x+#", "1") == b"$iothub/methods/POST/a%2Fb%3F%24rid%3Dx%2B%23/?$rid=1"


def test_mail_goes_to_the_device_and_the_slash_stands() -> None:
    assert mail_topic("a", b"") == b"devices/a/messages/devicebound/"
    assert may_subscribe(mail_filter(Identity("a")), Identity("a"))
    assert not may_subscribe(mail_filter(Identity("a")), Identity("b"))


TEXT = st.text(max_size=12)


@given(st.dictionaries(TEXT.filter(lambda key: not key.startswith("$")), TEXT, max_size=4), TEXT)
def test_no_property_of_a_message_can_be_mistaken(application: dict[str, str], message_id: str) -> None:
    bag = encode_mail_bag("a", {"message-id": message_id, "to": "elsewhere", "unknown": "x"}, application)
    codec.check_topic(bag)
    assert b"/" not in bag
    assert all(pair.count(b"=") == 1 for pair in bag.split(b"&"))
    seen = decode_bag(bag)
    assert seen.system == {"to": "/devices/a/messages/devicebound", "message-id": message_id}
    assert seen.application == application


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("hub/a/?api-version=2020-09-30&DeviceClientType=x&model-id=dtmi%3Aacme%3Ax%3B1", "dtmi:acme:x;1"),
        ("hub/a/?model-id=dtmi:x;1", "dtmi:x;1"),
        ("hub/a/?api-version=2020-09-30", ""),
        ("hub/model-id=x/?api-version=2020-09-30", ""),
        ("hub/a", ""),
    ],
)
def test_the_model_of_a_device_stands_behind_its_user_name(name: str, model: str) -> None:
    assert model_id_of(name) == model


def test_what_the_hub_stamps_comes_from_the_hub_alone() -> None:
    said = stamps("a", None, generation="7", method="{}", enqueued="t")
    assert said == {
        "iothub-connection-device-id": "a",
        "iothub-connection-auth-method": "{}",
        "iothub-connection-auth-generation-id": "7",
        "iothub-enqueuedtime": "t",
        "iothub-message-source": "Telemetry",
    }
    assert stamps("a", "m", generation="7", method="{}", enqueued="t")["iothub-connection-module-id"] == "m"
    spoofed = decode_bag(b"iothub-connection-device-id=b&%24.mid=1&iothub-enqueuedtime=x")
    assert spoofed.system == {"message-id": "1"}
    assert spoofed.application.keys() == {"iothub-connection-device-id", "iothub-enqueuedtime"}


@given(st.binary(max_size=60))
def test_no_topic_breaks_a_reader(tail: bytes) -> None:
    for start in (b"", b"$iothub/twin/GET/", REPORT, b"$iothub/methods/res/"):
        parse_answer(start + tail)
        with contextlib.suppress(BadTwinRequest):
            parse_request(start + tail)
