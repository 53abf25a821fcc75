"""The device API of the console beside a real hub: lists, twins, methods, messages, keys, and who may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from answering_device import answering_device
from hub_stage import HubStage, hub_stage
from plant import until

from headrace.core.clock import ManualClock
from headrace.core.config import WebConfig
from headrace.core.errors import Conflict, NotFound, Unavailable, UserError
from headrace.core.schema import event_batch
from headrace.devices.commands import DeviceCommands
from headrace.devices.connection_string import parse
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.web import registry
from headrace.web.hub import refusal
from headrace.web.raw_messages import last_messages
from headrace.web.registry import RegistryIndex


def error(answer: Any) -> Any:
    return answer.json()["error"]


async def listed(docs: MemoryDocStore, **asked: Any) -> list[str]:
    return [line.id for line in (await RegistryIndex(docs).page(registry.wanted(**asked))).devices]


@pytest.fixture
async def docs() -> MemoryDocStore:
    clock = ManualClock()
    docs = MemoryDocStore(clock)
    commands = DeviceCommands(docs, clock, lambda count: b"k" * count)
    for id, site in (("press-1", "north"), ("press-2", "south"), ("lathe-1", "north"), ("mill-1", "")):
        await commands.create(id, site=site, entity_id=f"machine-of-{id}")
    await commands.disable("mill-1")
    await docs.put("presence", "press-2", {"connected": True, "since": clock.now(), "last_activity": clock.now()})
    await docs.put("presence", "press-1", {"connected": False, "since": clock.now() - 100, "reason": "keep_alive"})
    return docs


async def test_a_list_is_searched_filtered_sorted_and_cut_into_pages(docs: MemoryDocStore) -> None:
    assert await listed(docs) == ["lathe-1", "mill-1", "press-1", "press-2"]
    assert await listed(docs, text="PRESS") == ["press-1", "press-2"]
    assert await listed(docs, text="machine-of-lathe") == ["lathe-1"]
    assert await listed(docs, connected="yes") == ["press-2"]
    assert await listed(docs, connected="never") == ["lathe-1", "mill-1"]
    assert await listed(docs, status="disabled") == ["mill-1"]
    assert await listed(docs, site="") == ["mill-1"]
    assert await listed(docs, site="north", text="press") == ["press-1"]
    assert await listed(docs, sort="connected", descending=True, limit=1) == ["press-2"]
    assert await listed(docs, offset=1, limit=2) == ["mill-1", "press-1"]
    page = await RegistryIndex(docs).page(registry.wanted(text="press"))
    assert (page.matching, page.total, page.connected, page.disabled) == (2, 4, 1, 1)
    assert page.sites == {"north": 2, "south": 1, "": 1}


async def test_a_list_follows_what_is_made_deleted_and_connected(docs: MemoryDocStore) -> None:
    index = RegistryIndex(docs)
    await index.page(registry.wanted())
    commands = DeviceCommands(docs, ManualClock(), lambda count: b"k" * count)
    await commands.delete("press-1")
    await commands.create("arm-1")
    await docs.put("presence", "arm-1", {"connected": True, "since": 10**16, "last_activity": 10**16})
    page = await index.page(registry.wanted())
    assert [line.id for line in page.devices] == ["arm-1", "lathe-1", "mill-1", "press-2"]
    assert page.devices[0].connected


async def test_a_list_by_something_unknown_names_what_there_is(docs: MemoryDocStore) -> None:
    with pytest.raises(UserError) as told:
        registry.wanted(sort="colour")
    assert "authentication" in told.value.hint


async def test_the_last_messages_of_one_device_come_with_their_properties_newest_first() -> None:
    log = MemoryEventLog(ManualClock())
    bag = orjson.dumps(
        {"system": {"content-type": "x", "message-id": "m"}, "application": {"a": "1", "b": None}}
    ).decode()
    for number in range(5):
        rows = {
            "_event_id": [f"e{number}", f"f{number}"],
            "_device": ["a", "b"],
            "_properties": [bag, None],
            "_body": [b"%d" % number, b"\xff"],
        }
        await log.append("telemetry", event_batch(rows))
    found = await last_messages(log, "telemetry", "a", limit=3)
    assert [one.text for one in found] == ["4", "3", "2"]
    assert (found[0].properties, found[0].system) == ({"a": "1", "b": None}, {"message-id": "m"})
    assert [one.text for one in await last_messages(log, "telemetry", "b", limit=1)] == [None]
    assert await last_messages(log, "nothing", "a", limit=3) == []


def test_errors_of_the_hub_keep_their_words_and_become_our_classes() -> None:
    gone = refusal(404, {"Message": "ErrorCode:DeviceNotFound;there is no device 'x'"})
    assert (type(gone), gone.message, gone.code) == (NotFound, "there is no device 'x'", "hub.DeviceNotFound")
    offline = refusal(404, {"Message": '{"errorCode": 404103, "message": "not connected"}', "ExceptionMessage": ""})
    assert (offline.message, offline.code) == ("not connected", "hub.404103")
    assert type(refusal(412, None)) is Conflict
    assert type(refusal(504, {"message": "late", "errorCode": 504101})) is Unavailable
    assert type(refusal(400, ["odd"])) is UserError


async def test_a_device_is_made_changed_and_deleted_through_the_hub(tmp_path: Path) -> None:
    async with hub_stage(tmp_path) as it:
        asked = {"id": "press 7#", "site": "north", "entity": "machine-7"}
        made = await it.post("/devices", {**asked, "id": "press-7"})
        assert made.status_code == 201
        assert error(await it.post("/devices", asked))["code"] == "hub.ArgumentInvalid"  # a space is no part of an id
        twice = await it.post("/devices", {"id": "press-7"})
        assert (twice.status_code, error(twice)["code"]) == (409, "hub.DeviceAlreadyExists")
        shown = (await it.client.get("/api/hub/devices/press-7")).json()
        assert (shown["site"], shown["entity"], shown["status"]) == ("north", "machine-7", "enabled")
        assert await it.key("press-7") not in orjson.dumps(shown).decode()
        off = {"enabled": False, "reason": "in repair", "etag": shown["etag"]}
        assert (await it.client.put("/api/hub/devices/press-7/status", json=off)).status_code == 200
        stale = await it.client.put("/api/hub/devices/press-7/status", json=off)
        assert stale.status_code == 409
        shown = (await it.client.get("/api/hub/devices/press-7")).json()
        assert (shown["status"], shown["statusReason"], shown["site"]) == ("disabled", "in repair", "north")
        gone = await it.client.request("DELETE", "/api/hub/devices/press-7", json={})
        assert gone.status_code == 200
        assert (await it.client.get("/api/hub/devices/press-7")).status_code == 404


async def test_keys_are_shown_when_asked_and_a_new_one_replaces_the_old(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        answer = await it.client.get("/api/hub/devices/a/keys")
        keys = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert parse(keys["connection_string"]).key == keys["primary_key"] == await it.key("a")
        assert keys["qr"].startswith("data:image/svg+xml")
        assert (await it.post("/devices/a/rotate", {"which": "primary"})).status_code == 200
        fresh = (await it.client.get("/api/hub/devices/a/keys")).json()
        assert fresh["primary_key"] != keys["primary_key"]
        assert fresh["secondary_key"] == keys["secondary_key"]


async def test_a_twin_that_others_changed_meanwhile_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        first = (await it.client.get("/api/hub/devices/a")).json()["twin"]["etag"]
        mine = {"tags": {"line": "A"}, "desired": {"rate": 5}, "etag": first}
        saved = await it.client.put("/api/hub/devices/a/twin", json=mine)
        assert saved.json()["properties"]["desired"]["rate"] == 5
        again = await it.client.put("/api/hub/devices/a/twin", json={**mine, "desired": {"rate": 6}})
        assert again.status_code == 409
        forced = await it.client.put("/api/hub/devices/a/twin", json={**mine, "desired": {"rate": 6}, "etag": "*"})
        assert forced.json()["properties"]["desired"]["rate"] == 6
        found = (
            await it.client.get("/api/hub/query", params={"q": "SELECT * FROM devices WHERE tags.line = 'A'"})
        ).json()
        assert [line["id"] for line in found["lines"]] == ["a"]


async def test_a_method_is_answered_by_the_device_and_told_when_it_is_away(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        away = await it.post("/devices/a/methods", {"name": "reboot"})
        assert (away.status_code, error(away)["code"]) == (404, "hub.404103")
        async with answering_device(it.ports.plain_port, "a", await it.key("a")) as device:
            answer = await it.post("/devices/a/methods", {"name": "re/boot", "payload": {"delay": 3}})
            assert answer.json() == {"status": 200, "payload": {"did": "re/boot", "with": {"delay": 3}}}
            assert device.called == [("re/boot", {"delay": 3})]


async def test_messages_wait_in_the_queue_are_purged_and_reach_the_device(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        for body in ("one", "two"):
            assert (await it.post("/devices/a/mail", {"body": body, "expiryS": 60})).json()["messageId"]
        assert (await it.client.get("/api/hub/devices/a")).json()["waiting"] == 2
        purged = await it.client.request("DELETE", "/api/hub/devices/a/mail", json={})
        assert purged.json() == {"purged": 2}
        async with answering_device(it.ports.plain_port, "a", await it.key("a")) as device:
            await it.post("/devices/a/mail", {"body": "hällo", "properties": {"level": "3"}, "ack": "full"})
            await until(lambda: bool(device.mail))
            assert device.mail == ["hällo".encode()]


@pytest.mark.parametrize(("name", "value"), [("a b", "x"), ("a", "x\r\ny: z"), ("a", "ü"), ("", "x")])
async def test_a_property_that_cannot_travel_is_refused(tmp_path: Path, name: str, value: str) -> None:
    async with hub_stage(tmp_path, "a") as it:
        answer = await it.post("/devices/a/mail", {"body": "x", "properties": {name: value}})
        assert (answer.status_code, error(answer)["code"]) == (400, "web.header")


async def test_modules_come_and_go_with_twins_of_their_own(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        assert (await it.post("/devices/a/modules", {"id": "camera"})).status_code == 201
        wanted = {"tags": {}, "desired": {"fps": 5}, "etag": "*"}
        await it.client.put("/api/hub/devices/a/twin", params={"module": "camera"}, json=wanted)
        twin = (await it.client.get("/api/hub/devices/a/modules/camera/twin")).json()
        assert (twin["moduleId"], twin["properties"]["desired"]["fps"]) == ("camera", 5)
        shown = (await it.client.get("/api/hub/devices/a")).json()
        assert [module["id"] for module in shown["modules"]] == ["camera"]
        await it.client.request("DELETE", "/api/hub/devices/a/modules/camera", json={})
        assert (await it.client.get("/api/hub/devices/a")).json()["modules"] == []


async def test_a_wrong_query_says_where(tmp_path: Path) -> None:
    async with hub_stage(tmp_path) as it:
        answer = await it.client.get("/api/hub/query", params={"q": "SELEC *"})
        assert answer.status_code == 400
        assert "position 1" in error(answer)["message"]


async def test_while_the_hub_is_down_devices_are_shown_and_commands_say_why_not(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        it.asleep.append(True)
        assert (await it.client.get("/api/hub/devices/a")).status_code == 200
        answer = await it.post("/devices/a/rotate", {"which": "primary"})
        assert (answer.status_code, error(answer)["code"]) == (503, "hub.down")


COMMANDS: list[Callable[[HubStage], Awaitable[Any]]] = [
    lambda it: it.client.get("/api/hub/devices/a/keys"),
    lambda it: it.post("/devices", {"id": "b"}),
    lambda it: it.post("/devices/a/rotate", {"which": "primary"}),
    lambda it: it.client.request("DELETE", "/api/hub/devices/a", json={}),
    lambda it: it.client.get("/api/hub/enrolments/group/g/keys"),
]


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_console_that_others_reach_changes_nothing_and_shows_no_key(
    tmp_path: Path, command: Callable[[HubStage], Awaitable[Any]]
) -> None:
    async with hub_stage(tmp_path, "a", web=WebConfig(host="0.0.0.0", port=0)) as it:
        assert (await it.client.get("/api/hub/devices/a")).status_code == 200
        assert (await command(it)).status_code == 403
        assert (await it.client.get("/api/hub/devices/a")).json()["status"] == "enabled"


async def test_another_page_cannot_command_devices(tmp_path: Path) -> None:
    async with hub_stage(tmp_path, "a") as it:
        from_elsewhere = {"origin": "http://evil.example"}
        answer = await it.client.request("DELETE", "/api/hub/devices/a", json={}, headers=from_elsewhere)
        assert answer.status_code == 403
        form = await it.client.post("/api/hub/devices/a/rotate", data={"which": "primary"})
        assert form.status_code == 403
