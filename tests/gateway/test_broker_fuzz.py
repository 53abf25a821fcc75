"""Two clients that send anything at all, in any order: the broker answers in whole packets, and nothing of its own fails.

Against the model of a whole broker without sockets: links on transports that only remember.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from broker_parts import Bench, ack, connect, packet, publish, subscribe, unsubscribe
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.gateway.broker.router import Router, Subscription
from headrace.wire.mqtt import properties5 as p
from headrace.wire.mqtt.codec import FrameParser
from headrace.wire.mqtt.topics import matches, parse_filter

TOPICS = ["a", "a/b", "a/b/c", "/", "$own/x", "telemetry/d1", ""]
FILTERS = ["#", "a/#", "+/b", "a", "$share/g/a/#", "$own/#", "+", "telemetry/+"]
ids = st.integers(1, 4)
properties = st.one_of(
    st.just({}),
    st.builds(lambda alias: {p.TOPIC_ALIAS: alias}, st.integers(1, 3)),
    st.builds(lambda s: {p.MESSAGE_EXPIRY: s, p.USER_PROPERTY: [("a", "b")]}, st.integers(0, 3)),
)


def packets(version: int) -> st.SearchStrategy[bytes]:
    asked = properties if version == 5 else st.just({})
    expiry = st.sampled_from([{}, {p.SESSION_EXPIRY: 60, p.TOPIC_ALIAS_MAXIMUM: 1, p.RECEIVE_MAXIMUM: 2}])
    options = st.sampled_from([0, 1, 2] if version == 4 else [0, 1, 2, 0x05, 0x09, 0x12, 0x22])
    will = st.sampled_from([None, ("a/b", b"gone", 1, True)])
    return st.one_of(
        st.builds(
            lambda qos, id, topic, more, retain, dup, body: publish(
                topic, body, qos=qos, id=id, retain=retain, dup=dup and qos > 0, version=version, properties=more
            ),
            st.integers(0, 2), ids, st.sampled_from(TOPICS), asked, st.booleans(), st.booleans(), st.binary(max_size=3),
        ),
        st.builds(lambda name, wanted: subscribe((name, wanted), version=version), st.sampled_from(FILTERS), options),
        st.builds(lambda name: unsubscribe(name, version=version), st.sampled_from(FILTERS)),
        st.builds(ack, st.sampled_from([0x40, 0x50, 0x60, 0x70]), ids),
        st.builds(
            lambda clean, more, said: connect("same", version=version, clean=clean, properties=more, will=said),
            st.booleans(), expiry, will,
        ),
        st.sampled_from([b"\xc0\0", b"\xe0\0"]),
        st.builds(packet, st.integers(0, 255), st.binary(max_size=12)),
    )  # fmt: skip


class Wire(asyncio.Transport):
    """A transport that keeps what was written and does nothing else."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.9", 4242)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.closed
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


steps = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(packets(4), packets(5)), st.booleans()), min_size=1, max_size=25
)


async def play(folder: Path, version: int, script: list[tuple[int, bytes, bool]]) -> None:
    bench = Bench(folder)
    bench.broker = bench.build()
    await asyncio.to_thread(bench.broker._store.load)
    hall = bench.broker.hall
    links: list[Any] = [None, None]
    wires: list[Wire] = []
    for who, data, again in script:
        if links[who] is None or links[who].closing or again:
            if links[who] is not None:
                links[who].connection_lost(None)
            wires.append(Wire())
            links[who] = hall.protocol()
            links[who].connection_made(wires[-1])
            links[who].data_received(connect(f"c{who}", version=version, clean=False))
        links[who].data_received(data)
        await asyncio.sleep(0)
    await bench.broker._store.write()
    hall._flush()
    for link in links:
        if link is not None:
            link.connection_lost(None)
    await bench.broker._store.write()
    for wire in wires:
        parser = FrameParser(1 << 20)
        parser.feed(wire.written, [])
        assert not parser.rest
    for session in hall.exchange.sessions.values():
        assert session.durable
        assert session.link is None
        assert all(delivery.row for delivery in session.inflight.values())
    bench.broker._store.close()
    again_ = Bench(folder)
    again_.broker = again_.build()
    loaded = await asyncio.to_thread(again_.broker._store.load)
    assert {row.client_id for row in loaded.sessions} == set(hall.exchange.sessions)
    kept = {name: len(session.inflight) + session.waiting for name, session in hall.exchange.sessions.items()}
    found = dict.fromkeys(kept, 0)
    for client_id, _ in loaded.deliveries:
        found[client_id] += 1
    assert found == kept
    assert len(loaded.subscriptions) == hall.exchange.router.count
    assert {message.topic for message in loaded.retained} == {
        m.topic for m in hall.exchange.retained.matching((b"#",))
    } | {m.topic for m in hall.exchange.retained.matching((b"$own", b"#"))}
    again_.broker._store.close()


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([4, 5]), steps)
def test_any_conversation_ends_well_and_what_is_kept_is_on_disk(
    version: int, script: list[tuple[int, bytes, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), version, script))


names = st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=4).map("/".join)
wild = st.lists(st.sampled_from(["a", "b", "", "+", "$x"]), min_size=1, max_size=4).map("/".join)
filters = st.one_of(wild.filter(bool), wild.map(lambda text: text + "/#"), st.just("#"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), filters, st.booleans()), max_size=30), names.filter(bool))
def test_the_tree_finds_what_looking_at_every_filter_finds(changes: list[tuple[int, str, bool]], topic: str) -> None:
    router: Router[int] = Router()
    known: dict[tuple[int, str], Subscription[int]] = {}
    for owner, text, keep in changes:
        levels = parse_filter(text.encode()).levels
        subscription = Subscription(owner, text.encode(), b"", levels, 1, False, False, 0)
        if keep:
            router.add(subscription)
            known[owner, text] = subscription
        elif known.pop((owner, text), None):
            router.remove(subscription)
    wanted = {owner for (owner, _), each in known.items() if matches(each.levels, topic.encode())}
    assert {match.owner for match in router.plan(topic.encode()).matches} == wanted
    assert router.count == len(known)
    for each in known.values():
        router.remove(each)
    assert router._root.empty
