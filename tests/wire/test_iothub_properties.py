"""Property bags: what devices write behind a telemetry topic."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.iothub.properties import BagReader, decode_bag, describe, encode_bag

TEXTS = st.text(max_size=12)


def test_system_properties_are_recognised_after_decoding_the_key() -> None:
    for bag in (b"%24.mid=7&%24.ct=application%2Fjson", b"$.mid=7&$.ct=application%2Fjson"):
        assert decode_bag(bag).system == {"message-id": "7", "content-type": "application/json"}


def test_a_plus_stays_a_plus_and_bad_escapes_stay_as_they_are() -> None:
    assert decode_bag(b"a%20b=c+d&e=%zz").application == {"a b": "c+d", "e": "%zz"}


def test_null_and_empty_are_told_apart() -> None:
    assert decode_bag(b"a&b=&&c=1=2").application == {"a": None, "b": "", "c": "1=2"}


def test_a_question_mark_before_and_a_slash_behind_do_not_belong_to_the_bag() -> None:
    assert decode_bag(b"?k=v/&").application == {"k": "v/"}
    assert decode_bag(b"?k=v/").application == {"k": "v"}


def test_a_device_cannot_stamp_what_the_hub_stamps() -> None:
    found = decode_bag(b"iothub-connection-device-id=other&message-id=x")
    assert found.system == {}
    assert describe(found).message_id is None


def test_the_size_counts_values_of_system_and_both_sides_of_application() -> None:
    assert decode_bag(b"%24.mid=12345&name=v%C3%BC&flag").size_bytes == 5 + 4 + 3 + 4


@pytest.mark.parametrize("bag", [b"", b"&", b"&&"])
def test_no_properties_is_null(bag: bytes) -> None:
    assert BagReader().describe([bag]) == [(None, "telemetry", None, None, "")]


def test_columns_of_a_message() -> None:
    (described,) = BagReader().describe([b"$.mid=m1&$.ct=text%2Fplain&type=alarm&x=1&stream=lab"])
    message_id, kind, content_type, text, stream = described
    assert (message_id, kind, content_type, stream) == ("m1", "alarm", "text/plain", "lab")
    assert json.loads(text or "") == {
        "system": {"message-id": "m1", "content-type": "text/plain"},
        "application": {"type": "alarm", "x": "1", "stream": "lab"},
    }


@given(st.lists(st.binary(max_size=40).map(lambda noise: noise.replace(b"\0", b"=")), max_size=8))
def test_the_remembering_reader_says_the_same_as_the_plain_one(bags: list[bytes]) -> None:
    reader = BagReader(entries_max=3)
    assert reader.describe(bags + bags) == [describe(decode_bag(bag)) for bag in bags + bags]


@given(
    st.sampled_from(["$.mid=", "%24.mid="]),
    st.text('aZ09-_.~:/%2?"', max_size=6),
    st.lists(st.sampled_from(["$.ct=a%2Fb", "type=x", "k", "k=", "?k=v", "$.mid=9", "q=%22", "v/", ""]), max_size=4),
)
def test_a_message_id_in_front_is_read_like_any_other_part(key: str, message_id: str, rest: list[str]) -> None:
    bag = "&".join([key + message_id, *rest]).encode()
    assert BagReader().describe([bag, bag]) == [describe(decode_bag(bag))] * 2


@given(st.dictionaries(TEXTS.filter(bool), st.none() | TEXTS), st.none() | TEXTS)
def test_every_bag_that_is_written_is_read_back(application: dict[str, str | None], mid: str | None) -> None:
    system = {"message-id": mid}
    application = {key: value for key, value in application.items() if not key.startswith("$.")}
    assert decode_bag(encode_bag(system, application)) == (system, application)
