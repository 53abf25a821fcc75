"""Message routing: what goes where, what is added on the way, and what the hub tells of its devices."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from gateway_parts import Parts, device, properties_of, publish, rows_of, until

from headrace.core.config import EnrichmentConfig, RouteConfig
from headrace.core.errors import Unavailable
from headrace.core.identity import EventIds
from headrace.devices.routes import RouteInvalid, Routing
from headrace.gateway.ingress import Ingress
from headrace.gateway.limits import RateLimit
from headrace.gateway.presence import Arrival
from headrace.gateway.routing import Router, endpoint_problem
from headrace.gateway.routing_events import HubEvents
from headrace.wire.iothub.topics import Identity

JSON_BAG = "%24.ct=application%2Fjson&%24.ce=utf-8"


def routed(parts: Parts, bytes_max: int = 1000, **config: Any) -> None:
    """Give the parts an ingress with routes. `routes` are {name: (condition, endpoints)}."""
    routes = {
        name: RouteConfig(condition=condition, endpoints=tuple(endpoints))
        for name, (condition, endpoints) in config.pop("routes").items()
    }
    routing = Routing(routes, hub_name="hub-1", problem=endpoint_problem, **config)
    router = Router(routing, clock=parts.clock, metrics=parts.metrics, twins=parts.twins, bytes_max=bytes_max)
    parts.ingress = parts.door.ingress = Ingress(
        parts.log,
        clock=parts.clock,
        rng=random.Random(1),
        ids=EventIds(b"routes"),
        metrics=parts.metrics,
        limit=RateLimit(0, parts.clock),
        interval_s=0.0,
        batch_rows_max=100,
        router=router,
    )


async def stored(parts: Parts, *bags_and_bodies: tuple[str, bytes], id: str = "a") -> dict[str, list[bytes]]:
    """What each stream holds after a device sent these."""
    connection, _ = parts.connected(id)
    data = b"".join(publish(id, bag, body, number) for number, (bag, body) in enumerate(bags_and_bodies, 1))
    connection.data_received(data)
    await parts.settle()
    return {stream: [row["_body"] for row in await rows_of(parts.log, stream)] for stream in await parts.log.streams()}


async def test_a_message_goes_once_to_each_endpoint_of_the_routes_it_fits(parts: Parts) -> None:
    routes = {"one": ("level = 'hot'", ["hot", "all"]), "two": ("true", ["all"])}
    routed(parts, routes=routes)
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "level=hot", b"1", 1) + publish("a", "level=cold", b"2", 2))
    await parts.settle()
    assert [row["_body"] for row in await rows_of(parts.log, "hot")] == [b"1"]
    rows = await rows_of(parts.log, "all")
    assert [row["_body"] for row in rows] == [b"1", b"2"]
    assert "telemetry" not in await parts.log.streams()
    assert wire.written == b"\x40\x02\x00\x01\x40\x02\x00\x02"
    assert parts.ingress.pending_rows == 0


async def test_what_fits_no_route_falls_back_to_telemetry(parts: Parts) -> None:
    routed(parts, routes={"hot": ("level = 'hot'", ["hot"])})
    assert await stored(parts, ("level=hot", b"1"), ("", b"2")) == {"hot": [b"1"], "telemetry": [b"2"]}


async def test_without_the_fallback_it_is_acknowledged_counted_and_dropped(parts: Parts) -> None:
    routed(parts, routes={"hot": ("level = 'hot'", ["hot"])}, fallback=False)
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "", b"2", 7))
    await parts.settle()
    assert wire.written == b"\x40\x02\x00\x07"
    assert await parts.log.streams() == []
    assert parts.metrics.registry.get_sample_value("headrace_gateway_unrouted_total") == 1
    assert parts.ingress.pending_rows == 0


async def test_a_message_that_names_its_stream_is_not_routed(parts: Parts) -> None:
    routed(parts, routes={"all": ("true", ["all"])})
    parts.ingress.streams.names = frozenset({"telemetry", "asked"})
    found = await stored(parts, ("stream=asked", b"1"), ("", b"2"), ("stream=alerts", b"3"))
    assert found == {"asked": [b"1"], "all": [b"2"], "set_aside": [b"3"]}


CASES = [
    ("LEVEL = 'Hot'", "Level=Hot", b"", True),
    ("level = 'hot'", "Level=Hot", b"", False),
    ("count > 5", "count=9", b"", False),  # the values of properties are texts
    ("as_number(count) > 5", "count=9", b"", True),
    ("$contentType = 'application/json'", JSON_BAG, b"{}", True),
    ("$messageId = 'm1'", "%24.mid=m1", b"", True),
    ("$connectionDeviceId = 'a'", "", b"", True),
    ("$enqueuedTime > '2024-01-01'", "", b"", True),
    ("$own = 'x'", "%24own=x", b"", True),  # no system property: the application's
    ("$body.t > 80", JSON_BAG, b'{"t": 81}', True),
    ("$body.t > 80", JSON_BAG, b'{"t": 80}', False),
    ("$body.t > 80", "%24.ct=application%2Fjson", b'{"t": 81}', False),  # its encoding is not said
    ("$body.t > 80", "%24.ct=text%2Fplain&%24.ce=utf-8", b'{"t": 81}', False),
    ("$body.t > 80", JSON_BAG, b"\xff\x00 no json", False),
    ("$body.t > 80", "%24.ct=application%2Fjson&%24.ce=utf-16", '{"t": 81}'.encode("utf-16"), True),
    ("$body.list[1].n = 2", JSON_BAG, b'{"list": [0, {"n": 2}]}', True),
    ("NOT (missing = 'x')", "", b"", False),
    ("is_defined($body.t) AND starts_with(unit, 'c')", f"{JSON_BAG}&unit=celsius", b'{"t": 1}', True),
    ("$twin.tags.floor = 3", "", b"", True),
    ("$twin.properties.desired.speed = 5", "", b"", True),
    ("$twin.properties.reported.speed = 5", "", b"", False),
]


@pytest.mark.parametrize(("condition", "bag", "body", "fits"), CASES)
async def test_a_condition_sees_properties_body_and_twin(
    parts: Parts, condition: str, bag: str, body: bytes, fits: bool
) -> None:
    await parts.twins.update(Identity("a"), {"tags": {"floor": 3}, "properties": {"desired": {"speed": 5}}})
    routed(parts, routes={"one": (condition, ["yes"])})
    assert await stored(parts, (bag, body)) == {"yes" if fits else "telemetry": [body]}


async def test_a_changed_twin_counts_for_the_next_message(parts: Parts) -> None:
    routed(parts, routes={"one": ("$twin.tags.floor = 3", ["yes"])})
    connection, _ = parts.connected("a")
    work = asyncio.ensure_future(parts.ingress.run())
    for number, floor in enumerate((2, 3), 1):
        await parts.twins.update(Identity("a"), {"tags": {"floor": floor}})
        connection.data_received(publish("a", "", str(floor).encode(), number))
        await until(lambda: not parts.ingress.pending_rows)
    parts.ingress.close()
    await work
    assert [row["_body"] for row in await rows_of(parts.log, "yes")] == [b"3"]


async def test_messages_wait_while_the_twins_cannot_be_read(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    routed(parts, routes={"one": ("$twin.tags.floor = 3", ["yes"])})
    failures = [Unavailable("the disk is away")]
    get = parts.twins.get

    async def broken(identity: Identity) -> Any:
        if failures:
            raise failures.pop()
        return await get(identity)

    monkeypatch.setattr(parts.twins, "get", broken)
    connection, wire = parts.connected("a")
    connection.data_received(publish("a", "", b"1", 1))
    parts.ingress.close()
    work = asyncio.ensure_future(parts.ingress.run())
    await until(lambda: bool(not failures and parts.ingress.trouble))
    assert wire.written == b""
    while not work.done():
        parts.clock.advance(1)
        await asyncio.sleep(0)
    assert wire.written == b"\x40\x02\x00\x01"


async def test_enrichments_are_added_for_their_endpoints_only(parts: Parts) -> None:
    await parts.twins.update(Identity("a"), {"tags": {"floor": 3}})
    enrichments = {
        "hub": EnrichmentConfig(key="hub", value="$iothubname", endpoints=("one",)),
        "floor": EnrichmentConfig(key="floor", value="$twin.tags.floor", endpoints=("one",)),
        "none": EnrichmentConfig(key="none", value="$twin.tags.none", endpoints=("one",)),
        "text": EnrichmentConfig(key="team", value="blue", endpoints=("one",)),
    }
    routed(parts, routes={"r": ("true", ["one", "events"])}, enrichments=enrichments)
    connection, _ = parts.connected("a")
    connection.data_received(publish("a", "own=1", b"x", 1) + publish("a", "", b"y", 2))
    await parts.settle()
    added = {"hub": "hub-1", "floor": "3", "none": "$twin.tags.none", "team": "blue"}
    first, second = await rows_of(parts.log, "one")
    assert properties_of(first) == {"system": {}, "application": {"own": "1", **added}}
    assert properties_of(second)["application"] == added
    plain, bare = await rows_of(parts.log, "telemetry")
    assert (properties_of(plain)["application"], properties_of(bare)) == ({"own": "1"}, None)
    assert first["_event_id"] == plain["_event_id"]


async def test_a_message_too_large_once_enriched_is_dropped_there(parts: Parts) -> None:
    enrichments = {"big": EnrichmentConfig(key="big", value="v" * 300, endpoints=("one",))}
    routed(parts, 500, routes={"r": ("true", ["one", "two"])}, enrichments=enrichments)
    found = await stored(parts, ("", b"x" * 198), ("", b"x" * 197))
    assert {stream: [len(body) for body in bodies] for stream, bodies in found.items()} == {
        "one": [197],
        "two": [198, 197],
    }


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [
        (lambda: routes_of("level = "), "route.condition", "at position 9"),
        (lambda: routes_of("nofunction(a)"), "route.condition", "nofunction"),
        (lambda: routes_of("$twin.nothing = 1"), "route.condition", "$twin has tags and properties at position 1"),
        (lambda: routes_of("a[0] = 1"), "route.condition", "at position 1"),
        (lambda: routes_of("true", "alerts"), "route.endpoint", "'alerts'"),
        (lambda: routes_of("true", "twin_changes"), "route.endpoint", "'twin_changes'"),
        (lambda: routes_of("true", "no/stream"), "route.endpoint", "no stream name"),
        (lambda: Routing({"x": RouteConfig(endpoints=())}), "route.invalid", "leads nowhere"),
    ],
)
def test_a_route_that_cannot_be_is_an_error_that_says_where(make: Callable[[], Any], code: str, said: str) -> None:
    with pytest.raises(RouteInvalid) as caught:
        make()
    assert caught.value.code == code
    assert "[routes.x]" in str(caught.value)
    assert said in str(caught.value)


def routes_of(condition: str, endpoint: str = "one") -> Routing:
    return Routing({"x": RouteConfig(condition=condition, endpoints=(endpoint,))}, problem=endpoint_problem)


def test_an_enrichment_for_an_endpoint_that_nothing_leads_to_is_an_error() -> None:
    with pytest.raises(RouteInvalid, match="'two' is that of no enabled route"):
        Routing({"x": RouteConfig(endpoints=("one",))}, {"e": EnrichmentConfig(key="k", value="v", endpoints=("two",))})


def test_without_routes_nothing_is_routed(parts: Parts) -> None:
    routed(parts, routes={})
    assert parts.ingress._router is None


def events(parts: Parts, **routes: RouteConfig) -> HubEvents:
    made = HubEvents(
        Routing(routes, hub_name="hub-1"),
        parts.log,
        clock=parts.clock,
        ids=EventIds(b"hub"),
        metrics=parts.metrics,
        hub_name="hub-1",
    )
    parts.twins.on_change.append(made.twin_changed)
    parts.presence.on_arrival.append(made.arrived)
    return made


async def test_twin_changes_reach_their_stream(parts: Parts) -> None:
    route = RouteConfig(source="TwinChangeEvents", condition="$body.tags.floor = 3", endpoints=("twin_changes",))
    hub = events(parts, one=route)
    await parts.twins.update(Identity("a"), {"tags": {"floor": 2}})
    await parts.twins.update(Identity("a", "m"), {"tags": {"floor": 3}})
    await hub.flush()
    (row,) = await rows_of(parts.log, "twin_changes")
    assert (row["_device"], row["_module"], row["_type"]) == ("a", "m", "updateTwin")
    assert orjson.loads(row["_body"]) == {"version": 2, "tags": {"floor": 3}}
    properties = properties_of(row)
    assert properties["system"]["iothub-message-source"] == "twinChangeEvents"
    assert properties["application"] == {
        "hubName": "hub-1",
        "deviceId": "a",
        "moduleId": "m",
        "operationTimestamp": "2025-01-01T00:00:00.0000000Z",
        "iothub-message-schema": "twinChangeNotification",
        "opType": "updateTwin",
    }


async def test_who_comes_and_goes_and_who_is_made_and_deleted_is_told(parts: Parts) -> None:
    hub = events(
        parts,
        one=RouteConfig(source="DeviceLifecycleEvents", endpoints=("device_lifecycle",)),
        two=RouteConfig(source="DeviceConnectionStateEvents", endpoints=("device_connection",)),
    )
    connection, _ = parts.connected("a")
    connection.connection_lost(None)
    hub.arrived(Arrival(Identity("a", "m"), True, 5, ""))
    hub.device_changed("new", device("new"))
    hub.device_changed("new", device("new", updated=7))  # only changed
    hub.device_changed("new", None)
    await hub.flush()
    kinds = [row["_type"] for row in await rows_of(parts.log, "device_connection")]
    assert kinds == ["deviceConnected", "deviceDisconnected", "moduleConnected"]
    rows = await rows_of(parts.log, "device_lifecycle")
    assert [row["_type"] for row in rows] == ["createDeviceIdentity", "deleteDeviceIdentity"]
    assert orjson.loads(rows[0]["_body"])["deviceId"] == "new"
    assert b"a2tr" not in rows[0]["_body"]  # no key


async def test_events_of_the_hub_wait_for_the_log(parts: Parts) -> None:
    hub = events(parts, one=RouteConfig(source="DeviceConnectionStateEvents", endpoints=("device_connection",)))
    parts.log.refusals = 2
    parts.connected("a")
    await hub.flush()
    assert len(await rows_of(parts.log, "device_connection")) == 1
