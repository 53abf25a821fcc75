"""The paths of twins, methods, messages and queries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from rest_parts import Service, error_of

from headrace.core.clock import to_iso
from headrace.wire.iothub.topics import Identity


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.open()
    await made.made("press")
    assert (await made.call("PUT", "/devices/press/modules/m", {})).status_code == 201
    yield made
    await made.close()


async def test_a_new_twin_is_empty_at_version_one(service: Service) -> None:
    answer = await service.call("GET", "/twins/press")
    twin = answer.json()
    assert (twin["deviceId"], twin["tags"], twin["version"]) == ("press", {}, 1)
    for section in ("desired", "reported"):
        assert twin["properties"][section]["$version"] == 1
        assert "$lastUpdated" in twin["properties"][section]["$metadata"]
    assert answer.headers["etag"] == f'"{twin["etag"]}"'


@pytest.mark.parametrize("path", ["/twins/press", "/twins/press/modules/m"])
async def test_a_patch_merges_and_a_put_replaces(service: Service, path: str) -> None:
    pushed: list[Any] = []
    service.twins.on_desired.append(lambda identity, patch: pushed.append((identity.client_id, patch)))
    first = await service.call("PATCH", path, {"tags": {"a": 1, "b": 2}, "properties": {"desired": {"x": {"y": 1}}}})
    second = await service.call("PATCH", path, {"tags": {"a": None}, "properties": {"desired": {"x": {"z": 2}}}})
    twin = second.json()
    assert (first.status_code, second.status_code) == (200, 200)
    assert twin["tags"] == {"b": 2}
    assert twin["properties"]["desired"]["x"] == {"y": 1, "z": 2}
    assert (twin["version"], twin["properties"]["desired"]["$version"]) == (3, 3)
    assert "$lastUpdatedVersion" in twin["properties"]["desired"]["$metadata"]["x"]["z"]
    third = await service.call("PUT", path, {**twin, "tags": {}, "properties": {"desired": {"only": True}}})
    replaced = third.json()
    desired = {key: value for key, value in replaced["properties"]["desired"].items() if key[0] != "$"}
    assert (third.status_code, replaced["tags"], desired) == (200, {}, {"only": True})
    name = path.removeprefix("/twins/").replace("modules/", "")
    assert pushed[-1] == (name, {"only": True, "x": None, "$version": 4})


async def test_an_etag_guards_a_twin(service: Service) -> None:
    etag = (await service.call("GET", "/twins/press")).json()["etag"]
    one = await service.call("PATCH", "/twins/press", {"tags": {"a": 1}}, match=f'"{etag}"')
    assert one.status_code == 200
    two = await service.call("PATCH", "/twins/press", {"tags": {"a": 2}}, match=f'"{etag}"')
    assert error_of(two) == (412, "PreconditionFailed")
    assert (await service.call("PUT", "/twins/press", {"tags": {"a": 3}}, match='"*"')).json()["tags"] == {"a": 3}


async def test_a_twin_that_breaks_the_rules_is_400_and_unchanged(service: Service) -> None:
    before = (await service.call("GET", "/twins/press")).json()
    for body in ([], {"tags": 1}, {"tags": {"a.b": 1}}, {"properties": {"desired": {"x": "y" * 5000}}}):
        assert error_of(await service.call("PATCH", "/twins/press", body)) == (400, "ArgumentInvalid")
    assert (await service.call("GET", "/twins/press")).json() == before


async def test_twins_of_nobody_are_not_found(service: Service) -> None:
    for method, body in (("GET", ...), ("PATCH", {"tags": {}}), ("PUT", {})):
        assert error_of(await service.call(method, "/twins/x", body)) == (404, "DeviceNotFound")
        assert error_of(await service.call(method, "/twins/press/modules/x", body)) == (404, "ModuleNotFound")
        assert error_of(await service.call(method, "/twins/press%2Fm", body)) == (404, "DeviceNotFound")


async def test_a_method_is_asked_and_its_answer_told(service: Service) -> None:
    answer = await service.call(
        "POST",
        "/twins/press/methods",
        {"methodName": "reboot", "payload": {"a": [1]}, "responseTimeoutInSeconds": "7", "connectTimeoutInSeconds": 3},
    )
    assert (answer.status_code, answer.json()) == (200, {"status": 207, "payload": {"echo": {"a": [1]}}})
    await service.call("POST", "/twins/press/modules/m/methods", {"methodName": "look"})
    assert service.callee.asked == [
        (Identity("press"), "reboot", {"a": [1]}, 7.0, 3.0),
        (Identity("press", "m"), "look", None, 30.0, 0.0),
    ]


def method_error(answer: httpx.Response) -> tuple[int, str, int]:
    said = orjson.loads(answer.json()["Message"])
    assert said["message"]
    assert said["trackingId"]
    assert said["timestampUtc"]
    return answer.status_code, answer.headers["iothub-errorcode"], said["errorCode"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/twins/press/methods", {"methodName": "offline"}, (404, "DeviceNotOnline", 404103)),
        ("/twins/press/methods", {"methodName": "slow"}, (504, "GatewayTimeout", 504101)),
        ("/twins/x/methods", {"methodName": "a"}, (404, "DeviceNotFound", 404001)),
        ("/twins/press/modules/x/methods", {"methodName": "a"}, (404, "ModuleNotFound", 404010)),
        ("/twins/press/methods", {}, (400, "ArgumentInvalid", 400004)),
        (
            "/twins/press/methods",
            {"methodName": "a", "responseTimeoutInSeconds": "soon"},
            (400, "ArgumentInvalid", 400004),
        ),
    ],
)
async def test_what_is_wrong_with_a_method_is_told(
    service: Service, path: str, body: dict[str, Any], error: tuple[int, str, int]
) -> None:
    assert method_error(await service.call("POST", path, body)) == error


async def device_call(service: Service, method: str, path: str, id: str = "press") -> httpx.Response:
    found = await service.queries.get(id)
    token = service.token(found.primary_key, f"hub/devices/{id}")
    await service.directory.refresh()
    return await service.http.request(method, path, headers={"authorization": token})


async def send(service: Service, body: bytes = b"hello", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.call("POST", "/devices/press/messages/devicebound", content=body, headers=named)


async def test_a_message_reaches_the_device_and_is_completed(service: Service) -> None:
    sent = await send(
        service,
        b"\x00hello",
        iothub_messageid="m1",
        iothub_app_colour="red",
        iothub_ack="full",
        content_type="text/plain",
    )
    assert (sent.status_code, sent.headers["iothub-messageid"]) == (204, "m1")
    assert (await service.call("GET", "/devices/press")).json()["cloudToDeviceMessageCount"] == 1
    got = await device_call(service, "GET", "/devices/press/messages/deviceBound")
    assert (got.status_code, got.content) == (200, b"\x00hello")
    assert (got.headers["iothub-messageid"], got.headers["iothub-app-colour"]) == ("m1", "red")
    assert (got.headers["content-type"], got.headers["iothub-ack"]) == ("text/plain", "full")
    assert (await device_call(service, "GET", "/devices/press/messages/deviceBound")).status_code == 204
    lock = got.headers["etag"].strip('"')
    done = await device_call(service, "DELETE", f"/devices/press/messages/deviceBound/{lock}")
    assert (done.status_code, await service.mailbox.pending("press")) == (204, 0)
    lost = await device_call(service, "DELETE", f"/devices/press/messages/deviceBound/{lock}")
    assert error_of(lost) == (412, "DeviceMessageLockLost")
    assert [found.record["statusCode"] for found in await service.mailbox.feedback()] == ["Success"]


async def test_an_abandoned_message_comes_again_and_a_rejected_one_does_not(service: Service) -> None:
    await send(service)
    path = "/devices/press/messages/deviceBound"
    lock = (await device_call(service, "GET", path)).headers["etag"].strip('"')
    assert (await device_call(service, "POST", f"{path}/{lock}/abandon")).status_code == 204
    again = await device_call(service, "GET", path)
    assert again.headers["iothub-deliverycount"] == "1"
    lock = again.headers["etag"].strip('"')
    assert (await device_call(service, "DELETE", f"{path}/{lock}?reject")).status_code == 204
    assert (await device_call(service, "GET", path)).status_code == 204


async def test_a_message_in_the_queue_is_no_other_devices_and_no_services(service: Service) -> None:
    await service.made("other")
    await send(service)
    path = "/devices/press/messages/deviceBound"
    assert error_of(await device_call(service, "GET", path, "other")) == (401, "IotHubUnauthorizedAccess")
    assert error_of(await service.call("GET", path, policy="service")) == (401, "IotHubUnauthorizedAccess")
    (letter,) = await service.mailbox.peek("press")
    by_id = await device_call(service, "DELETE", f"{path}/{letter.id.replace('/', '%2F')}")
    assert (by_id.status_code, await service.mailbox.pending("press")) == (412, 1)


async def test_no_property_begins_another_header(service: Service) -> None:
    await service.mailbox.send("press", _message({"evil": "a\r\nset-cookie: x", "näme:": "ü"}))
    got = await device_call(service, "GET", "/devices/press/messages/deviceBound")
    assert got.headers["iothub-app-evil"] == "a%0D%0Aset-cookie: x"
    assert got.headers["iothub-app-n%C3%A4me%3A"] == "%C3%BC"
    assert "set-cookie" not in got.headers


def _message(application: dict[str, str | None]) -> Any:
    from headrace.devices.mailbox import Message

    return Message({}, application, b"")


async def test_what_cannot_be_sent_is_refused(service: Service) -> None:
    assert error_of(await send(service, iothub_ack="perhaps")) == (400, "ArgumentInvalid")
    assert error_of(await send(service, iothub_expiry="soon")) == (400, "ArgumentInvalid")
    past = to_iso(service.clock.now() - 1)
    assert error_of(await send(service, iothub_expiry=past)) == (400, "ArgumentInvalid")
    assert error_of(await send(service, b"x" * 70_000)) == (413, "MessageTooLarge")
    unknown = await service.call("POST", "/devices/x/messages/devicebound", content=b"")
    assert error_of(unknown) == (404, "DeviceNotFound")
    for _ in range(50):
        assert (await send(service)).status_code == 204
    assert error_of(await send(service)) == (403, "DeviceMaximumQueueDepthExceeded")
    purged = await service.call("DELETE", "/devices/press/commands")
    assert purged.json() == {"deviceId": "press", "moduleId": None, "totalMessagesPurged": 50}


async def query(service: Service, text: str, size: int = 0, token: str = "") -> httpx.Response:
    headers = {"x-ms-max-item-count": str(size)} if size else {}
    headers |= {"x-ms-continuation": token} if token else {}
    return await service.call("POST", "/devices/query", {"query": text}, headers=headers)


async def test_a_query_is_answered_a_page_at_a_time(service: Service) -> None:
    for number in range(5):
        await service.made(f"d{number}")
    seen, token = [], ""
    while True:
        answer = await query(service, "SELECT * FROM devices WHERE starts_with(deviceId, 'd')", 2, token)
        assert (answer.status_code, answer.headers["x-ms-item-type"]) == (200, "Twin")
        seen.append([twin["deviceId"] for twin in answer.json()])
        token = answer.headers.get("x-ms-continuation", "")
        if not token:
            break
    assert seen == [["d0", "d1"], ["d2", "d3"], ["d4"]]


async def test_a_query_answers_what_the_twin_answers(service: Service) -> None:
    await service.call("PATCH", "/twins/press", {"tags": {"a": 1}})
    assert (await query(service, "select * from devices")).json() == [
        (await service.call("GET", "/twins/press")).json()
    ]
    modules = (await query(service, "select * from devices.modules")).json()
    assert modules == [(await service.call("GET", "/twins/press/modules/m")).json()]


async def test_a_projection_is_raw(service: Service) -> None:
    answer = await query(service, "SELECT count() AS n FROM devices")
    assert (answer.headers["x-ms-item-type"], answer.json()) == ("Raw", [{"n": 1}])


async def test_a_bad_query_is_400_and_says_where(service: Service) -> None:
    answer = await query(service, "SELECT * FROM devices WHERE tags.a = = 1")
    assert error_of(answer) == (400, "ArgumentInvalid")
    assert "position 38" in answer.json()["Message"]
    for body in ({}, {"query": 1}, []):
        assert error_of(await service.call("POST", "/devices/query", body)) == (400, "ArgumentInvalid")
    bad = await query(service, "select * from devices", token="nonsense")
    assert error_of(bad) == (400, "ArgumentInvalid")
