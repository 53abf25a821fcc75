"""The provisioning service's API for services, and its HTTP side for devices."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pki import issue
from provisioned import KEY
from provisioning_parts import Place

from headrace.core.clock import TICKS_PER_S
from headrace.wire.iothub import sas
from headrace.wire.iothub.provisioning import derive_key

ROOT = issue("factory root", ca=True)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    await made.open()
    yield made
    await made.close()


def refusal(answer: httpx.Response) -> tuple[int, int]:
    """Status and number of an error, after looking that its parts are there."""
    body = answer.json()
    assert set(body) == {"errorCode", "trackingId", "message", "timestampUtc"}
    assert body["message"]
    assert body["errorCode"] // 1000 == answer.status_code
    return answer.status_code, body["errorCode"]


async def test_an_enrolment_is_made_read_changed_and_deleted(place: Place) -> None:
    wanted = {
        "registrationId": "Press-7",
        "deviceId": "dev-7",
        "attestation": {"type": "symmetricKey"},
        "capabilities": {"iotEdge": True},
        "allocationPolicy": "static",
        "iotHubs": ["hub"],
        "provisioningStatus": "enabled",
        "reprovisionPolicy": {"updateHubAssignment": True, "migrateDeviceData": False},
        "initialTwin": {"tags": {"line": 4, "$version": 1}, "properties": {"desired": {"rate": 5, "$metadata": {}}}},
        "optionalDeviceInformation": {"colour": "red"},
        "customAllocationDefinition": None,
    }
    made = await place.call("PUT", "/enrollments/press-7", wanted)
    assert made.status_code == 200
    body = made.json()
    keys = body["attestation"]["symmetricKey"]
    assert len(keys["primaryKey"]) == 44
    assert made.headers["etag"] == body["etag"]
    assert body["etag"].startswith('"')
    assert (body["registrationId"], body["iotHubHostName"], body["allocationPolicy"]) == ("Press-7", "hub", "static")
    assert body["initialTwin"] == {"tags": {"line": 4}, "properties": {"desired": {"rate": 5}}}
    assert body["reprovisionPolicy"] == {"updateHubAssignment": True, "migrateDeviceData": False}

    read = (await place.call("GET", "/Enrollments/PRESS-7")).json()
    assert read["attestation"] == {"type": "symmetricKey", "symmetricKey": {"primaryKey": None, "secondaryKey": None}}
    assert {**read, "attestation": 0} == {**body, "attestation": 0}

    changed = await place.call(
        "PUT", "/enrollments/press-7", {**read, "provisioningStatus": "disabled"}, match=read["etag"]
    )
    assert changed.status_code == 200
    assert changed.json()["provisioningStatus"] == "disabled"
    shown = await place.call("POST", "/enrollments/press-7/attestationmechanism")
    assert shown.json()["symmetricKey"] == keys

    assert refusal(await place.call("PUT", "/enrollments/press-7", read, match=read["etag"])) == (412, 412001)
    assert refusal(await place.call("PUT", "/enrollments/press-7", read)) == (409, 409202)
    assert (await place.call("PUT", "/enrollments/press-7", read, match="*")).status_code == 200
    assert refusal(await place.call("DELETE", "/enrollments/press-7", match='"old"')) == (412, 412001)
    gone = await place.call("DELETE", "/enrollments/press-7", match="*")
    assert (gone.status_code, gone.content) == (204, b"")
    for method in ("GET", "DELETE"):
        assert refusal(await place.call(method, "/enrollments/press-7"))[0] == 404


@pytest.mark.parametrize("form", ["pem", "base64"])
async def test_groups_take_certificates_and_show_what_they_are(place: Place, form: str) -> None:
    text = ROOT.pem if form == "pem" else base64.b64encode(ROOT.certificate.public_bytes(Encoding.DER)).decode()
    wanted = {
        "enrollmentGroupId": "line",
        "attestation": {"type": "x509", "x509": {"signingCertificates": {"primary": {"certificate": text}}}},
    }
    made = await place.call("PUT", "/enrollmentGroups/line", wanted)
    assert made.status_code == 200, made.text
    read = (await place.call("GET", "/enrollmentGroups/line")).json()
    info = read["attestation"]["x509"]["signingCertificates"]["primary"]["info"]
    assert info["sha1Thumbprint"] == ROOT.sha1.upper()
    assert "factory root" in info["subjectName"]
    assert (await place.call("PUT", "/enrollmentGroups/line", read, match="*")).status_code == 200
    assert (await place.call("GET", "/enrollmentGroups/line")).json()["attestation"] == read["attestation"]


async def test_lists_come_by_page(place: Place) -> None:
    for number in range(5):
        await place.enrol(f"press-{number}")
    await place.enrol("line", "group")
    asked = {"query": "SELECT * FROM enrollments"}
    ids: list[str] = []
    headers = {"x-ms-max-item-count": "2"}
    for size in (2, 2, 1):
        answer = await place.call("POST", "/enrollments/query", asked, headers=headers)
        assert answer.headers["x-ms-item-type"] == "enrollment"
        ids += [row["registrationId"] for row in answer.json()]
        assert len(answer.json()) == size
        assert KEY not in answer.text
        if "x-ms-continuation" in answer.headers:
            headers["x-ms-continuation"] = answer.headers["x-ms-continuation"]
    assert "x-ms-continuation" not in answer.headers
    assert ids == [f"press-{number}" for number in range(5)]
    groups = await place.call("POST", "/enrollmentGroups/query", {"query": "select *"})
    assert [row["enrollmentGroupId"] for row in groups.json()] == ["line"]
    for wrong in ({"query": "SELECT id FROM enrollments"}, {}, []):
        assert refusal(await place.call("POST", "/enrollments/query", wrong))[0] == 400
    for name, value in (("x-ms-continuation", "!"), ("x-ms-max-item-count", "many")):
        assert refusal(await place.call("POST", "/enrollments/query", asked, headers={name: value}))[0] == 400


async def test_many_are_made_changed_and_deleted_at_once(place: Place) -> None:
    entries = [{"registrationId": f"press-{number}", "attestation": {"type": "symmetricKey"}} for number in range(3)]
    made = await place.call("POST", "/enrollments", {"mode": "create", "enrollments": entries})
    assert made.json() == {"isSuccessful": True, "errors": []}
    again = (await place.call("POST", "/enrollments", {"mode": "create", "enrollments": [*entries, 5, {}]})).json()
    assert not again["isSuccessful"]
    assert [error["errorCode"] // 1000 for error in again["errors"]] == [409, 409, 409, 400, 400]
    site = [{**entry, "site": "north", "etag": '"old"'} for entry in entries]
    stale = (await place.call("POST", "/enrollments", {"mode": "updateIfMatchETag", "enrollments": site})).json()
    assert {error["errorCode"] for error in stale["errors"]} == {412001}
    assert (await place.call("POST", "/enrollments", {"mode": "update", "enrollments": site})).json()["isSuccessful"]
    assert (await place.call("GET", "/enrollments/press-1")).json()["site"] == "north"
    assert (await place.call("POST", "/enrollments", {"mode": "delete", "enrollments": entries})).json()["isSuccessful"]
    assert (await place.call("POST", "/enrollments/query", {"query": "SELECT *"})).json() == []
    for wrong in ({"mode": "create"}, {"mode": "x", "enrollments": entries}, {"mode": "create", "enrollments": []}, 5):
        assert refusal(await place.call("POST", "/enrollments", wrong))[0] == 400


async def by_device(place: Place, method: str, path: str, id: str, key: str, **more: Any) -> httpx.Response:
    headers = {"authorization": place.proof(id, key)}
    return await place.http.request(method, f"/{place.scope}/registrations/{id}{path}", headers=headers, **more)


async def test_a_device_registers_over_http_and_services_see_its_registration(place: Place) -> None:
    await place.enrol("line", "group")
    key = derive_key(KEY, "press-7")
    first = await by_device(place, "PUT", "/register", "press-7", key, json={"registrationId": "press-7"})
    assert (first.status_code, first.headers["retry-after"], first.json()["status"]) == (202, "3", "assigning")
    done = await by_device(place, "GET", f"/operations/{first.json()['operationId']}", "press-7", key)
    assert (done.status_code, done.json()["status"]) == (200, "assigned")
    state = (await by_device(place, "POST", "", "press-7", key, json={"registrationId": "press-7"})).json()
    assert state == done.json()["registrationState"]

    shown = await place.call("GET", "/registrations/press-7")
    assert shown.json() == state
    listed = await place.call("POST", "/registrations/line/query")
    assert (listed.json(), listed.headers["x-ms-item-type"]) == ([state], "deviceRegistration")
    assert refusal(await place.call("POST", "/registrations/other/query"))[0] == 404
    assert refusal(await place.call("DELETE", "/registrations/press-7", match='"old"'))[0] == 412
    assert (await place.call("DELETE", "/registrations/press-7")).status_code == 204
    assert refusal(await place.call("GET", "/registrations/press-7"))[0] == 404
    assert refusal(await by_device(place, "POST", "", "press-7", key))[0] == 404


async def test_an_individual_enrolment_shows_its_registration(place: Place) -> None:
    await place.enrol("press-7")
    await by_device(place, "PUT", "/register", "press-7", KEY)
    read = (await place.call("GET", "/enrollments/press-7")).json()
    assert read["registrationState"]["assignedHub"] == "hub"


async def test_devices_that_may_not_register_are_refused_over_http(place: Place) -> None:
    await place.enrol("press-7")
    await place.enrol("off", enabled=False)
    assert refusal(await by_device(place, "PUT", "/register", "press-7", derive_key(KEY, "press-7")))[0] == 401
    assert refusal(await by_device(place, "PUT", "/register", "nobody", KEY))[0] == 404
    assert refusal(await by_device(place, "PUT", "/register", "off", KEY))[0] == 403
    assert refusal(await by_device(place, "PUT", "/register", "press-7", KEY, content=b"{"))[0] == 400
    assert refusal(await by_device(place, "GET", "/register", "press-7", KEY))[0] == 405
    bare = await place.http.put(f"/{place.scope}/registrations/press-7/register")
    assert refusal(bare)[0] == 401
    other = await place.http.put("/0neOTHER/registrations/press-7/register", headers={"authorization": "x"})
    assert refusal(other)[0] == 404


async def test_only_the_services_own_policy_opens_its_api(place: Place) -> None:
    await place.enrol("press-7")
    expires_s = place.clock.now() // TICKS_PER_S
    good = {"key": place.service.primary_key, "expires_s": expires_s + 60, "policy": place.service.policy}
    ways: list[dict[str, Any]] = [
        {},
        {"key": KEY},
        {"policy": "iothubowner"},
        {"policy": None},
        {"expires_s": expires_s - 1},
        {"resource": "elsewhere"},
        {"resource": "hub/enrollmentGroups"},
        {"key": place.service.secondary_key},
    ]
    found = []
    for way in ways:
        given_ = {"resource": "hub", **good, **way}
        token = sas.build(given_.pop("resource"), given_.pop("key"), **given_)
        found.append((await place.http.get("/enrollments/press-7", headers={"authorization": token})).status_code)
    assert found == [200, 401, 401, 401, 401, 401, 401, 200]
    assert refusal(await place.http.get("/enrollments/press-7"))[0] == 401
    rotated = await place.identities.rotate("primary")
    assert rotated.primary_key != place.service.primary_key
    assert refusal(await place.call("GET", "/enrollments/press-7"))[0] == 401


async def test_what_is_not_provisionings_goes_on_to_the_hub(place: Place) -> None:
    for path in ("/devices/enrollments", "/twins/a", "/", "/devices/a/modules/registrations"):
        assert (await place.http.get(path)).status_code == 418
    for path in ("/enrollments", "/enrollments/a/b/c", "/registrations"):
        assert refusal(await place.call("GET", path))[0] in (404, 405)


@pytest.mark.parametrize(
    "change",
    [
        {"registrationId": "other"},
        {"provisioningStatus": "maybe"},
        {"allocationPolicy": "custom"},
        {"allocationPolicy": "static"},
        {"attestation": {"type": "tpm"}},
        {"attestation": {"type": "x509"}},
        {"attestation": {"x509": {"clientCertificates": {"primary": {"certificate": "?"}}}}},
        {"attestation": {"x509": {"clientCertificates": {"primary": {"certificate": "AAAA"}}}}},
        {"attestation": {"symmetricKey": {"primaryKey": "short"}}},
        {"attestation": 5},
        {"initialTwin": {"tags": {"a.b": 1}}},
        {"deviceId": "a b"},
    ],
)
async def test_an_enrolment_that_makes_no_sense_is_a_bad_request(place: Place, change: dict[str, Any]) -> None:
    answer = await place.call("PUT", "/enrollments/press-7", {"registrationId": "press-7", **change})
    assert refusal(answer)[0] == 400
    assert (await place.call("POST", "/enrollments/query", {"query": "SELECT *"})).json() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "registrationId",
        "deviceId",
        "attestation",
        "initialTwin",
        "iotHubs",
        "payload",
        "reprovisionPolicy",
        "mode",
        "enrollments",
        "etag",
        "query",
        "capabilities",
        "allocationPolicy",
        "optionalDeviceInformation",
    ]
)
CALLS = st.sampled_from(
    [
        ("PUT", "/enrollments/a"),
        ("POST", "/enrollments"),
        ("POST", "/enrollments/query"),
        ("PUT", "/enrollmentGroups/a"),
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=CALLS, body=st.dictionaries(FIELDS, JSON, max_size=5) | JSON)
async def test_no_body_makes_the_service_fail(place: Place, call: tuple[str, str], body: Any) -> None:
    answer = await place.call(*call, body, match="*")
    assert answer.status_code < 500
