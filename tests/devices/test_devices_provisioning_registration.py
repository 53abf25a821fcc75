"""From a proven enrolment to a device: allocation, the registry, twins, and what happens when a device registers again."""

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import msgspec
import pytest
from provisioned import HOST, KEY, OTHER_KEY, Desk

from headrace.core.errors import Conflict, NotFound, Unavailable, UserError
from headrace.devices.enrolments import Attestation
from headrace.devices.model import Draft
from headrace.devices.provisioning_allocation import Asking, LinkedHub, NoHub, check, choose
from headrace.devices.provisioning_hubs import RemoteHub
from headrace.wire.iothub.provisioning import derive_key
from headrace.wire.iothub.topics import Identity

EAST, WEST = LinkedHub("east", "east.example"), LinkedHub("west", "west.example")


class Elsewhere:
    """Another hub, as far as its devices and twins go."""

    def __init__(self) -> None:
        self.devices: dict[str, Draft] = {}
        self.twins: dict[str, Any] = {}
        self.down = False

    async def put(self, draft: Draft) -> bool:
        if self.down:
            raise Unavailable("down")
        made = draft.id not in self.devices
        self.devices[draft.id] = draft
        return made

    async def twin(self, device: str) -> Any:
        return self.twins.get(device) if device in self.devices else None

    async def set_twin(self, device: str, twin: Any, *, whole: bool) -> None:
        self.twins[device] = twin

    async def remove(self, device: str) -> None:
        self.devices.pop(device, None)
        self.twins.pop(device, None)


async def opened(*hubs: LinkedHub, **more: Any) -> Desk:
    desk = Desk(*hubs, **more)
    await desk.open()
    return desk


async def test_a_first_registration_makes_the_device_with_its_keys_and_its_twin() -> None:
    desk = await opened()
    await desk.enrol("Press-7", device_id="dev-7", tags={"line": 4}, desired={"rate": 5}, site="north", entity_id="m7")
    made = await desk.register("press-7")
    assert (made.device_id, made.hub, made.substatus, made.kind) == ("dev-7", HOST, "initialAssignment", "individual")
    device = await desk.queries.get("dev-7")
    assert (device.primary_key, device.secondary_key, device.site, device.entity_id) == (KEY, OTHER_KEY, "north", "m7")
    twin = await desk.twins.get(Identity("dev-7"))
    assert (twin.tags, twin.desired.values) == ({"line": 4}, {"rate": 5})


async def test_a_member_of_a_group_gets_the_derived_keys_and_its_registration_id() -> None:
    desk = await opened()
    await desk.enrol("line", "group", payload={"welcome": True}, iot_edge=True)
    made = await desk.join("press-7")
    assert (made.device_id, made.enrolment, made.payload) == ("press-7", "line", {"welcome": True})
    device = await desk.queries.get("press-7")
    assert (device.primary_key, device.secondary_key) == (derive_key(KEY, "press-7"), derive_key(OTHER_KEY, "press-7"))
    assert device.iot_edge


async def test_registering_again_leaves_device_and_twin_as_they_are() -> None:
    desk = await opened()
    await desk.enrol("line", "group", tags={"line": 4})
    first = await desk.join("press-7")
    before = await desk.queries.registered("press-7")
    await desk.twins.update(Identity("press-7"), {"tags": {"line": 5}})
    again = await desk.join("press-7")
    assert await desk.queries.registered("press-7") == before
    assert (await desk.twins.get(Identity("press-7"))).tags == {"line": 5}
    assert (again.created, again.substatus) == (first.created, "initialAssignment")
    assert again.operation != first.operation


async def test_new_keys_of_an_enrolment_reach_the_device_which_stays_disabled_if_it_was() -> None:
    desk = await opened()
    found = await desk.enrol("press-7")
    await desk.register("press-7")
    generation = (await desk.queries.get("press-7")).generation_id
    await desk.devices.disable("press-7")
    rolled = Attestation(primary_key=OTHER_KEY, secondary_key=KEY)
    await desk.enrolments.put(
        "individual", type(found.enrolment)(id="press-7", attestation=rolled), if_match=found.etag
    )
    await desk.register("press-7")
    device = await desk.queries.get("press-7")
    assert (device.primary_key, device.status, device.generation_id) == (OTHER_KEY, "disabled", generation)


async def test_a_device_that_the_registry_forgot_is_made_again_with_its_initial_twin() -> None:
    desk = await opened()
    await desk.enrol("press-7", tags={"line": 4})
    await desk.register("press-7")
    await desk.devices.delete("press-7")
    await desk.register("press-7")
    assert (await desk.twins.get(Identity("press-7"))).tags == {"line": 4}


async def test_many_registrations_of_one_device_at_once_make_one_device() -> None:
    desk = await opened()
    await desk.enrol("line", "group")
    found = await asyncio.gather(*(desk.join("press-7") for _ in range(20)))
    assert len({made.created for made in found}) == 1
    assert await desk.queries.count() == 1
    assert (await desk.service.queries.get("press-7")).registration.operation == found[-1].operation


async def test_hashed_allocation_follows_the_weights_and_is_stable() -> None:
    hubs = [LinkedHub("a", "a", 1), LinkedHub("b", "b", 3)]
    chosen = [choose("hashed", hubs, Asking(f"press-{number}")).name for number in range(4000)]
    assert chosen == [choose("hashed", hubs[::-1], Asking(f"PRESS-{number}")).name for number in range(4000)]
    assert Counter(chosen)["b"] / 4000 == pytest.approx(0.75, abs=0.03)
    third = [
        choose("hashed", [*hubs, LinkedHub("c", "c", 1)], Asking(f"press-{number}")).name for number in range(4000)
    ]
    assert all(new in (old, "c") for old, new in zip(chosen, third, strict=True))


def test_allocation_by_site_asks_the_site_then_the_address_then_hashes() -> None:
    east = LinkedHub("east", "e", sites=("tokyo",), networks=("10.0.0.0/8",))
    west = LinkedHub("west", "w", sites=("reno",), networks=("10.9.0.0/16", "2001:db8::/32"))
    hubs = [east, west]
    assert choose("geoLatency", hubs, Asking("a", site="reno", address="10.1.1.1")) is west
    assert choose("geoLatency", hubs, Asking("a", address="10.1.1.1")) is east
    assert choose("geoLatency", hubs, Asking("a", address="10.9.1.1")) is west
    assert choose("geoLatency", hubs, Asking("a", address="2001:db8::1")) is west
    for nowhere in ("192.0.2.1", "", "no address"):
        asked = Asking("a", site="elsewhere", address=nowhere)
        assert choose("geoLatency", hubs, asked) is choose("hashed", hubs, asked)


def test_linked_hubs_that_make_no_sense_are_refused() -> None:
    for wrong in (LinkedHub("a", "a", weight=0), LinkedHub("a", "a", networks=("10.0.0.0/40",))):
        with pytest.raises(UserError):
            check([wrong])
    with pytest.raises(UserError):
        check([LinkedHub("a", "x"), LinkedHub("b", "X")])


async def test_the_site_is_the_enrolments_or_else_what_the_device_says() -> None:
    east = EAST._replace(sites=("tokyo",))
    desk = await opened(east, allocation="geoLatency")
    await desk.enrol("line", "group")
    assert (await desk.join("a", payload={"site": "tokyo"})).hub == "east.example"
    await desk.enrol("b", site="reno")
    desk.linked[0] = LinkedHub("this", HOST, sites=("reno",))
    assert (await desk.register("b", payload={"site": "tokyo"})).hub == HOST
    assert (await desk.queries.get("b")).site == "reno"


async def test_a_device_of_another_hub_is_told_its_host() -> None:
    desk = await opened(EAST)
    await desk.enrol("press-7", allocation="static", hubs=("EAST.example",))
    assert (await desk.register("press-7")).hub == "east.example"
    assert await desk.queries.find("press-7") is None


async def test_an_enrolment_for_a_hub_that_is_not_linked_is_refused_and_nothing_kept() -> None:
    desk = await opened()
    await desk.enrol("press-7", hubs=("nowhere",))
    with pytest.raises(NoHub, match="nowhere"):
        await desk.register("press-7")
    assert await desk.service.queries.find("press-7") is None


async def moved(desk: Desk, *, update: bool = True, migrate: bool = True) -> Any:
    """Register press-7 here, change its twin, then let its enrolment name the hub in the east."""
    found = await desk.enrol("press-7", hubs=("this",), tags={"line": 4}, update_hub=update, migrate=migrate)
    await desk.register("press-7")
    await desk.twins.update(Identity("press-7"), {"tags": {"line": 9}, "properties": {"desired": {"rate": 1}}})
    changed = msgspec.structs.replace(found.enrolment, hubs=("east",))
    await desk.enrolments.put("individual", changed, if_match="*")
    return await desk.register("press-7")


async def test_a_device_that_moves_takes_its_twin_along() -> None:
    east = Elsewhere()
    desk = await opened(EAST, reached={"east.example": east})
    made = await moved(desk)
    assert (made.hub, made.substatus) == ("east.example", "deviceDataMigrated")
    assert east.twins["press-7"] == {"tags": {"line": 9}, "properties": {"desired": {"rate": 1}}}
    assert east.devices["press-7"].primary_key == KEY
    assert await desk.queries.find("press-7") is None


async def test_a_device_that_moves_without_its_data_starts_from_its_initial_twin() -> None:
    east = Elsewhere()
    desk = await opened(EAST, reached={"east.example": east})
    made = await moved(desk, migrate=False)
    assert made.substatus == "deviceDataReset"
    assert east.twins["press-7"] == {"tags": {"line": 4}, "properties": {"desired": {}}}


async def test_a_device_that_may_not_move_stays() -> None:
    desk = await opened(EAST)
    made = await moved(desk, update=False)
    assert (made.hub, made.substatus) == (HOST, "initialAssignment")
    assert (await desk.twins.get(Identity("press-7"))).tags == {"line": 9}


async def test_a_move_to_a_hub_that_is_down_changes_nothing_and_is_done_later() -> None:
    east = Elsewhere()
    east.down = True
    desk = await opened(EAST, reached={"east.example": east})
    with pytest.raises(Unavailable):
        await moved(desk)
    assert (await desk.service.queries.get("press-7")).registration.hub == HOST
    assert await desk.queries.find("press-7") is not None
    east.down = False
    assert (await desk.register("press-7")).substatus == "deviceDataMigrated"
    assert east.twins["press-7"]["tags"] == {"line": 9}


async def test_a_registration_that_is_deleted_is_a_first_one_again() -> None:
    desk = await opened()
    await desk.enrol("line", "group", tags={"line": 4})
    await desk.join("press-7")
    await desk.twins.update(Identity("press-7"), {"tags": {"line": 9}})
    found = await desk.service.queries.get("PRESS-7")
    with pytest.raises(Conflict):
        await desk.service.delete("press-7", if_match="old")
    await desk.service.delete("press-7", if_match=found.etag)
    with pytest.raises(NotFound):
        await desk.service.delete("press-7")
    await desk.join("press-7")
    assert (await desk.twins.get(Identity("press-7"))).tags == {"line": 4}


async def test_the_registrations_of_a_group_are_listed_by_page() -> None:
    desk = await opened()
    await desk.enrol("line", "group")
    for number in range(5):
        await desk.join(f"press-{number}")
    await desk.enrol("alone")
    await desk.register("alone")
    first = await desk.service.queries.of_group("line", limit=3)
    rest = await desk.service.queries.of_group("line", after=first[-1].registration.id)
    assert [each.registration.id for each in [*first, *rest]] == [f"press-{number}" for number in range(5)]


async def test_scope_and_keys_are_made_once_and_the_scope_stays() -> None:
    desk = await opened()
    found = await asyncio.gather(*(desk.identities.ensure() for _ in range(5)))
    assert {each.id_scope for each in found} == {desk.scope}
    rotated = await desk.identities.rotate("primary")
    assert rotated.id_scope == desk.scope
    assert (rotated.primary_key == found[0].primary_key, rotated.secondary_key == found[0].secondary_key) == (
        False,
        True,
    )
    assert found[0].primary_key not in repr(found[0])


class Remote:
    """The service API of another hub, by hand."""

    def __init__(self) -> None:
        self.devices: dict[str, Any] = {}
        self.twins: dict[str, Any] = {}
        self.fails = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"].startswith("SharedAccessSignature sr=other.example")
        if self.fails:
            raise httpx.ConnectError("no route")
        body = json.loads(request.content) if request.content else None
        kind, id = request.url.path.strip("/").split("/")
        known = self.devices if kind == "devices" else self.twins
        if request.method == "GET":
            return httpx.Response(200, json=known[id]) if id in known else httpx.Response(404)
        if request.method == "DELETE":
            return httpx.Response(204 if known.pop(id, None) else 404)
        if kind == "devices":
            if id in known and "if-match" not in request.headers:
                return httpx.Response(409)
            self.twins.setdefault(id, {"tags": {}, "properties": {"desired": {"$version": 1}}})
        known[id] = {**known.get(id, {}), **body}
        return httpx.Response(200, json=known[id])


async def test_devices_are_made_on_another_hub_by_its_service_api() -> None:
    remote = Remote()
    desk = Desk()
    string = f"HostName=other.example;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}"
    hub = RemoteHub(string, desk.clock, transport=httpx.MockTransport(remote))
    draft = Draft(id="press-7", authentication="sas", primary_key=KEY, secondary_key=OTHER_KEY)
    assert await hub.put(draft)
    remote.devices["press-7"]["status"] = "disabled"
    assert not await hub.put(draft)
    assert remote.devices["press-7"]["status"] == "disabled"
    assert remote.devices["press-7"]["authentication"]["symmetricKey"]["primaryKey"] == KEY
    await hub.set_twin("press-7", {"tags": {"line": 4}}, whole=False)
    assert await hub.twin("press-7") == {"tags": {"line": 4}, "properties": {"desired": {}}}
    await hub.remove("press-7")
    assert await hub.twin("press-8") is None
    remote.fails = True
    with pytest.raises(Unavailable, match="ConnectError"):
        await hub.put(draft)
    assert KEY not in repr(hub)
    await hub.close()


def test_a_connection_string_that_is_none_is_refused_without_being_shown() -> None:
    with pytest.raises(UserError) as caught:
        RemoteHub(f"HostName=x;SharedAccessKey={KEY}", Desk().clock)
    assert KEY not in str(caught.value)
