"""The registry's paths: devices, modules, bulk, statistics, and who may call them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rest_parts import Service, error_of

from headrace.devices.policies import DEFAULTS

OWN_KEY = base64.b64encode(b"o" * 32).decode()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.open()
    yield made
    await made.close()


async def test_a_device_is_made_with_keys_that_nobody_gave(service: Service) -> None:
    made = await service.made("press")
    assert (await service.call("GET", "/devices/press")).json() == made
    keys = made["authentication"]["symmetricKey"]
    assert len({base64.b64decode(keys["primaryKey"]), base64.b64decode(keys["secondaryKey"])}) == 2
    assert made["authentication"]["type"] == "sas"
    assert (made["status"], made["connectionState"], made["capabilities"]) == (
        "enabled",
        "Disconnected",
        {"iotEdge": False},
    )
    assert made["lastActivityTime"].startswith("0001-01-01T00:00:00")
    assert '"' not in made["etag"]


async def test_what_was_asked_for_is_what_is_made(service: Service) -> None:
    asked = {
        "status": "disabled",
        "statusReason": "worn",
        "authentication": {"type": "sas", "symmetricKey": {"primaryKey": OWN_KEY, "secondaryKey": OWN_KEY}},
    }
    made = await service.made("press", **asked)
    assert (made["status"], made["statusReason"]) == ("disabled", "worn")
    assert made["authentication"]["symmetricKey"] == {"primaryKey": OWN_KEY, "secondaryKey": OWN_KEY}


async def test_a_certificate_makes_a_device_without_keys(service: Service) -> None:
    made = await service.made("a", authentication={"x509Thumbprint": {"primaryThumbprint": "ab" * 20}})
    assert made["authentication"] == {
        "type": "selfSigned",
        "symmetricKey": {"primaryKey": None, "secondaryKey": None},
        "x509Thumbprint": {"primaryThumbprint": "AB" * 20, "secondaryThumbprint": None},
    }
    ca = await service.made("b", authentication={"type": "certificateAuthority"})
    assert ca["authentication"]["type"] == "certificateAuthority"


async def test_a_device_is_made_once(service: Service) -> None:
    await service.made("press")
    assert error_of(await service.call("PUT", "/devices/press", {})) == (409, "DeviceAlreadyExists")


@pytest.mark.parametrize("form", ["*", '"*"', "{etag}", '"{etag}"'])
async def test_every_form_of_if_match_changes_a_device(service: Service, form: str) -> None:
    made = await service.made("press")
    answer = await service.call(
        "PUT", "/devices/press", {"deviceId": "press", "status": "disabled"}, match=form.format(etag=made["etag"])
    )
    changed = answer.json()
    assert (answer.status_code, changed["status"]) == (200, "disabled")
    assert changed["etag"] != made["etag"]
    assert changed["generationId"] == made["generationId"]
    assert changed["authentication"] == made["authentication"]


async def test_another_etag_changes_and_deletes_nothing(service: Service) -> None:
    made = await service.made("press")
    for method, body in (("PUT", {"status": "disabled"}), ("DELETE", ...)):
        answer = await service.call(method, "/devices/press", body, match='"other"')
        assert error_of(answer) == (412, "PreconditionFailed")
    assert (await service.call("GET", "/devices/press")).json() == made


async def test_a_device_that_is_none_is_not_found(service: Service) -> None:
    for method, body, match in (("GET", ..., None), ("PUT", {}, "*"), ("DELETE", ..., '"*"'), ("DELETE", ..., None)):
        assert error_of(await service.call(method, "/devices/x", body, match=match)) == (404, "DeviceNotFound")


async def test_a_deleted_device_is_gone_with_all_that_was_its(service: Service) -> None:
    await service.made("press")
    await service.call("PUT", "/devices/press/modules/m", {})
    await service.call("PATCH", "/twins/press", {"tags": {"floor": 1}})
    await service.call("POST", "/devices/press/messages/devicebound", content=b"x")
    answer = await service.call("DELETE", "/devices/press", match='"*"')
    assert (answer.status_code, answer.content) == (204, b"")
    await service.made("press")
    assert (await service.call("GET", "/twins/press")).json()["tags"] == {}
    assert (await service.call("GET", "/devices/press/modules")).json() == []
    assert (await service.call("DELETE", "/devices/press/commands")).json()["totalMessagesPurged"] == 0


async def test_an_id_may_hold_every_legal_character(service: Service) -> None:
    answer = await service.call("PUT", "/devices/a%2Bb%23c%3F%25%24%3B'", {})
    assert answer.json()["deviceId"] == "a+b#c?%$;'"
    assert (await service.call("GET", "/devices/A%2Bb%23c%3F%25%24%3B'")).status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/devices/a%20b", {}),
        ("/devices/a%2Fb", {}),
        ("/devices/" + "a" * 129, {}),
        ("/devices/a", {"deviceId": "b"}),
        ("/devices/a", {"status": "perhaps"}),
        ("/devices/a", {"statusReason": "x" * 129}),
        ("/devices/a", {"authentication": {"type": "magic"}}),
        ("/devices/a", {"authentication": {"symmetricKey": {"primaryKey": "?"}}}),
        ("/devices/a", {"authentication": {"type": "selfSigned"}}),
        ("/devices/a", {"deviceScope": "ms-azure-iot-edge://x-1"}),
        ("/devices/a", {"capabilities": {"iotEdge": "yes"}}),
        ("/devices/a", []),
        ("/devices/a", None),
    ],
)
async def test_a_device_that_breaks_the_rules_is_400(service: Service, path: str, body: Any) -> None:
    assert error_of(await service.call("PUT", path, body)) == (400, "ArgumentInvalid")
    assert (await service.call("GET", "/devices")).json() == []


async def test_a_body_that_is_no_json_is_400(service: Service) -> None:
    for content in (b"", b"{", b"\xff", b"[" * 10_000):
        assert error_of(await service.call("PUT", "/devices/a", content=content)) == (400, "ArgumentInvalid")


async def test_devices_are_listed_by_id_up_to_top(service: Service) -> None:
    for id in ("c", "a", "b"):
        await service.made(id)
    found = (await service.http.get("/devices", params={"top": 2}, headers=await _authorization(service))).json()
    assert [device["deviceId"] for device in found] == ["a", "b"]
    assert found[0] == (await service.call("GET", "/devices/a")).json()


async def test_an_edge_device_has_a_scope_for_its_children(service: Service) -> None:
    edge = await service.made("edge", capabilities={"iotEdge": True})
    scope = f"ms-azure-iot-edge://edge-{edge['generationId']}"
    assert (edge["deviceScope"], edge["capabilities"]) == (scope, {"iotEdge": True})
    leaf = await service.made("leaf", deviceScope=scope)
    assert (leaf["deviceScope"], leaf["parentScopes"]) == (scope, [scope])
    child = await service.made("child", capabilities={"iotEdge": True}, parentScopes=[scope])
    assert child["deviceScope"] == f"ms-azure-iot-edge://child-{child['generationId']}"
    assert child["parentScopes"] == [scope]


async def test_modules_are_made_read_changed_and_deleted(service: Service) -> None:
    await service.made("press")
    answer = await service.call("PUT", "/devices/press/modules/m", {"moduleId": "m", "managedBy": "me"})
    made = answer.json()
    assert (answer.status_code, made["deviceId"], made["moduleId"], made["managedBy"]) == (201, "press", "m", "me")
    assert (await service.call("GET", "/devices/press/modules/m")).json() == made
    assert (await service.call("GET", "/devices/press/modules")).json() == [made]
    again = await service.call("PUT", "/devices/press/modules/m", {})
    assert error_of(again) == (409, "ModuleAlreadyExistsOnDevice")
    changed = await service.call("PUT", "/devices/press/modules/m", {"managedBy": "you"}, match=f'"{made["etag"]}"')
    assert (changed.status_code, changed.json()["managedBy"]) == (200, "you")
    stale = await service.call("DELETE", "/devices/press/modules/m", match=f'"{made["etag"]}"')
    assert error_of(stale) == (412, "PreconditionFailed")
    assert (await service.call("DELETE", "/devices/press/modules/m", match='"*"')).status_code == 204
    assert error_of(await service.call("GET", "/devices/press/modules/m")) == (404, "ModuleNotFound")
    assert error_of(await service.call("GET", "/devices/x/modules/m")) == (404, "DeviceNotFound")
    assert error_of(await service.call("PUT", "/devices/x/modules/m", {})) == (404, "DeviceNotFound")


async def test_a_bulk_request_does_each_entry(service: Service) -> None:
    answer = await service.call(
        "POST",
        "/devices",
        [
            {"id": "a", "importMode": "create", "status": "disabled", "tags": {"floor": 2}},
            {"id": "a", "moduleId": "m", "importMode": "Create"},
            {"id": "b", "importMode": "createOrUpdate"},
        ],
    )
    assert (answer.status_code, answer.json()) == (200, {"isSuccessful": True, "errors": [], "warnings": []})
    twin = (await service.call("GET", "/twins/a")).json()
    assert (twin["tags"], twin["status"]) == ({"floor": 2}, "disabled")
    answer = await service.call(
        "POST",
        "/devices",
        [
            {"id": "a", "importMode": "Update", "status": "enabled"},
            {"id": "a", "importMode": "updateTwin", "properties": {"desired": {"x": 1}}},
            {"id": "b", "importMode": "Delete"},
        ],
    )
    assert answer.json()["isSuccessful"] is True
    twin = (await service.call("GET", "/twins/a")).json()
    assert (twin["properties"]["desired"]["x"], twin["status"]) == (1, "enabled")
    assert [device["deviceId"] for device in (await service.call("GET", "/devices")).json()] == ["a"]


async def test_what_failed_in_a_bulk_request_is_told_and_the_rest_is_done(service: Service) -> None:
    made = await service.made("a")
    answer = await service.call(
        "POST",
        "/devices",
        [
            {"id": "a", "importMode": "create"},
            {"id": "a", "importMode": "updateIfMatchETag", "eTag": "other", "status": "disabled"},
            {"id": "x", "importMode": "delete"},
            {"id": "a b", "importMode": "create"},
            {"id": "a", "importMode": "dance"},
            {"id": "a", "importMode": "deleteIfMatchETag"},
            {"id": "new", "importMode": "create"},
            7,
        ],
    )
    assert answer.status_code == 400
    found = answer.json()
    assert found["isSuccessful"] is False
    assert [(error["deviceId"], error["errorCode"]) for error in found["errors"]] == [
        ("a", "DeviceAlreadyExists"),
        ("a", "PreconditionFailed"),
        ("x", "DeviceNotFound"),
        ("a b", "ArgumentInvalid"),
        ("a", "ArgumentInvalid"),
        ("a", "ArgumentInvalid"),
        (None, "ArgumentInvalid"),
    ]
    assert (await service.call("GET", "/devices/a")).json() == made
    assert (await service.call("GET", "/devices/new")).status_code == 200


async def test_a_bulk_request_has_an_end(service: Service) -> None:
    entries = [{"id": f"d{number}"} for number in range(101)]
    assert error_of(await service.call("POST", "/devices", entries)) == (400, "ArgumentInvalid")
    assert (await service.call("POST", "/devices", entries[:100])).status_code == 200
    assert len((await service.call("GET", "/devices")).json()) == 100


async def test_statistics_count(service: Service) -> None:
    await service.made("a")
    await service.made("b", status="disabled")
    for id, module in (("a", None), ("a/m", "m")):
        await service.docs.put("presence", id, {"device": "a", "module": module, "connected": True, "since": 0})
    assert (await service.call("GET", "/statistics/devices")).json() == {
        "totalDeviceCount": 2,
        "enabledDeviceCount": 1,
        "disabledDeviceCount": 1,
    }
    assert (await service.call("GET", "/statistics/service")).json() == {"connectedDeviceCount": 1}
    assert (await service.call("GET", "/devices/a")).json()["connectionState"] == "Connected"


@pytest.mark.parametrize("policy", DEFAULTS)
async def test_a_policy_opens_what_its_rights_open(service: Service, policy: str) -> None:
    await service.made("a")
    asked = {
        "RegistryRead": [("GET", "/devices/a", ...), ("GET", "/devices", ...), ("GET", "/statistics/devices", ...)],
        "RegistryWrite": [("PUT", "/devices/b", {}), ("POST", "/devices", []), ("DELETE", "/devices/b", ...)],
        "ServiceConnect": [("GET", "/twins/a", ...), ("POST", "/devices/query", {"query": "select * from devices"})],
    }
    for right, calls in asked.items():
        for method, path, body in calls:
            answer = await service.call(method, path, body, policy=policy)
            if right in DEFAULTS[policy]:
                assert answer.status_code < 300, answer.text
            else:
                assert error_of(answer) == (401, "IotHubUnauthorizedAccess")


async def test_strangers_learn_nothing(service: Service) -> None:
    device = await service.made("a")
    key = device["authentication"]["symmetricKey"]["primaryKey"]
    owner = (await service.policies.get("iothubowner")).primary_key
    texts = set()
    for token in (
        "",
        "Bearer x",
        service.token(OWN_KEY, policy="iothubowner"),
        service.token(OWN_KEY, policy="nobody"),
        service.token(key, "hub/devices/a"),
        service.token(owner),
        service.token(owner, policy="iothubowner", ttl_s=-1),
        service.token(owner, "elsewhere", policy="iothubowner"),
        service.token(owner, "hub/devices/b", policy="iothubowner"),
    ):
        answer = await service.http.get("/devices/a", headers={"authorization": token})
        assert error_of(answer) == (401, "IotHubUnauthorizedAccess")
        texts.add(answer.json()["Message"])
        assert OWN_KEY not in answer.text
    for known, unknown in (("iothubowner", "nobody"),):
        answers = [
            await service.http.get("/devices/a", headers={"authorization": service.token(OWN_KEY, policy=name)})
            for name in (known, unknown)
        ]
        assert answers[0].json()["Message"] == answers[1].json()["Message"]


async def test_a_rotated_key_opens_nothing_any_more(service: Service) -> None:
    await service.made("a")
    old = service.token((await service.policies.get("registryRead")).primary_key, policy="registryRead")
    assert (await service.http.get("/devices/a", headers={"authorization": old})).status_code == 200
    await service.policies.rotate("registryRead", "primary")
    await service.directory.refresh()
    assert (await service.http.get("/devices/a", headers={"authorization": old})).status_code == 401
    assert (await service.call("GET", "/devices/a", policy="registryRead")).status_code == 200


async def test_other_paths_and_methods_are_told(service: Service) -> None:
    for path in ("/", "/nothing", "/configurations/x", "/jobs/v2/x", "/devices/a/b/c/d", "/twins"):
        assert error_of(await service.call("GET", path)) == (404, "NotFound")
    answer = await service.call("PATCH", "/devices/a", {})
    assert error_of(answer) == (405, "MethodNotAllowed")
    assert answer.headers["allow"] == "PUT, GET, DELETE"


async def _authorization(service: Service) -> dict[str, str]:
    policy = await service.policies.get("iothubowner")
    return {"authorization": service.token(policy.primary_key, policy="iothubowner")}
