"""The server's side of a connection: which bytes ask for what, and what ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect
from headrace.wire.mqtt.connection import (
    Connecting,
    Disconnecting,
    Published,
    Reply,
    ServerConnection,
    Subscribing,
    Unsubscribing,
    Violation,
)

HELLO = codec.encode_connect(Connect("d", "hub/d", b"token", False, 60, None))
PUBLISH = codec.encode_publish(b"t", b"x", packet_id=1)


def opened() -> ServerConnection:
    connection = ServerConnection(packet_bytes_max=1000)
    assert [type(action) for action in connection.receive(HELLO)] == [Connecting]
    assert connection.accept(session_present=True) == b"\x20\x02\x01\x00"
    return connection


def reason_of(data: bytes, connection: ServerConnection | None = None) -> str:
    action = (connection or opened()).receive(data)[-1]
    assert isinstance(action, Violation)
    return action.reason


def test_publishes_of_one_read_come_as_one_action() -> None:
    (action,) = opened().receive(PUBLISH * 3)
    assert isinstance(action, Published)
    assert len(action.frames) == 3


def test_actions_keep_the_order_of_packets() -> None:
    subscribe = codec.encode_subscribe(1, [("a", 1)])
    actions = opened().receive(PUBLISH + subscribe + PUBLISH + codec.PING_REQUEST + codec.encode_unsubscribe(2, ["a"]))
    assert [type(action) for action in actions] == [Published, Subscribing, Published, Reply, Unsubscribing]


def test_a_client_may_send_before_its_connack_came() -> None:
    actions = ServerConnection(packet_bytes_max=1000).receive(HELLO + PUBLISH)
    assert [type(action) for action in actions] == [Connecting, Published]


def test_a_refused_client_is_heard_no_more() -> None:
    connection = ServerConnection(packet_bytes_max=1000)
    connection.receive(HELLO)
    assert connection.refuse(5) == b"\x20\x02\x00\x05"
    assert connection.receive(PUBLISH) == []


def test_a_clean_disconnect_ends_it() -> None:
    connection = opened()
    assert [type(action) for action in connection.receive(PUBLISH + codec.GOODBYE + PUBLISH)] == [
        Published,
        Disconnecting,
    ]
    assert connection.receive(PUBLISH) == []


def test_the_first_packet_must_be_connect_and_the_second_must_not() -> None:
    assert reason_of(PUBLISH, ServerConnection(packet_bytes_max=1000)) == "order"
    assert reason_of(HELLO) == "order"


def test_qos_2_is_a_violation_after_what_came_before_it() -> None:
    actions = opened().receive(PUBLISH + b"\x34\x05\x00\x01t\x00\x01" + PUBLISH)
    assert [type(action) for action in actions] == [Published, Violation]
    assert isinstance(actions[1], Violation)
    assert actions[1].reason == "qos2"


def test_another_version_is_answered_with_code_1() -> None:
    (action,) = ServerConnection(packet_bytes_max=1000).receive(b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c\x00\x00")
    assert isinstance(action, Violation)
    assert (action.reason, action.reply) == ("version", b"\x20\x02\x00\x01")


def test_a_packet_the_hub_never_expects_is_malformed() -> None:
    assert reason_of(b"\x50\x02\x00\x01") == "malformed"
    assert reason_of(b"\xc0\x01\x00") == "malformed"
    assert reason_of(b"\xc1\x00") == "malformed"


def test_publishes_before_a_broken_packet_are_delivered() -> None:
    actions = opened().receive(PUBLISH + b"\x30\x01\x00")
    assert [type(action) for action in actions] == [Published, Violation]


def test_a_packet_above_the_limit_is_a_violation_of_its_own() -> None:
    assert reason_of(codec.encode_publish(b"t", b"x" * 2000)) == "too_large"


@given(st.lists(st.binary(max_size=50), max_size=8), st.booleans())
def test_noise_never_raises_and_ends_with_at_most_one_violation(pieces: list[bytes], hello: bool) -> None:
    connection = opened() if hello else ServerConnection(packet_bytes_max=100)
    actions = [action for piece in pieces for action in connection.receive(piece)]
    violations = [action for action in actions if isinstance(action, Violation)]
    assert len(violations) <= 1
    assert not violations or actions[-1] is violations[0]
