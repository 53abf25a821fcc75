"""Whatever comes in over the service API, the answer is one of the API's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_parts import Service, error_of

from headrace.gateway.rest.app import routes

PATHS = sorted({(route.method, route.path) for route in routes(None)})  # type: ignore[arg-type]  # not called here
FIELDS = [
    "deviceId",
    "moduleId",
    "id",
    "status",
    "statusReason",
    "authentication",
    "type",
    "symmetricKey",
    "primaryKey",
    "secondaryKey",
    "x509Thumbprint",
    "primaryThumbprint",
    "capabilities",
    "iotEdge",
    "deviceScope",
    "parentScopes",
    "importMode",
    "eTag",
    "twinETag",
    "tags",
    "properties",
    "desired",
    "reported",
    "methodName",
    "payload",
    "responseTimeoutInSeconds",
    "connectTimeoutInSeconds",
    "query",
    "managedBy",
    "$version",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["a", "enabled", "sas", "selfSigned", "create", "delete", "updateTwin", "SELECT * FROM devices", "*"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner),
    max_leaves=12,
)
IDS = st.sampled_from(["a", "m", "x", "%00", "%2F", "..", "%C3%28", "a%20b", "$", "''"])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PATHS), IDS, IDS, VALUES, st.sampled_from(["", '"*"', "x"])), max_size=12))
def test_no_request_makes_the_hub_fail(calls: list[Any]) -> None:
    async def run() -> None:
        service = Service()
        await service.open()
        await service.made("a")
        for (method, path), one, two, body, match in calls:
            filled = "/" + path.replace("{}", one, 1).replace("{}", two, 1)
            more = {} if method == "GET" else {"content": json.dumps(body).encode()}
            answer = await service.call(method, filled, match=match or None, **more)
            assert answer.status_code < 500, (method, filled, body, answer.text)
        await service.close()

    asyncio.run(run())


@pytest.fixture
async def service() -> Any:
    made = Service()
    await made.open()
    await made.made("a")
    yield made
    await made.close()


def nested(depth: int) -> bytes:
    return b'{"methodName": "x", "tags": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


@pytest.mark.parametrize("depth", [50, 500, 1000, 5000])
async def test_a_body_nested_too_deeply_is_400(service: Service, depth: int) -> None:
    assert error_of(await service.call("PATCH", "/twins/a", content=nested(depth))) == (400, "ArgumentInvalid")
    payload = b'{"methodName": "x", "payload": ' + b"[" * depth + b"]" * depth + b"}"
    answer: httpx.Response = await service.call("POST", "/twins/a/methods", content=payload)
    assert answer.status_code in (200, 400)


@pytest.mark.parametrize("size", ["0", "-1", "99999999999999999999", "x", "1" * 6000])
async def test_an_odd_page_size_is_no_failure(service: Service, size: str) -> None:
    answer = await service.call(
        "POST", "/devices/query", {"query": "select * from devices"}, headers={"x-ms-max-item-count": size}
    )
    assert answer.status_code in (200, 400)


async def test_a_document_that_nobody_can_read_hides_no_other(service: Service) -> None:
    await service.docs.put("devices", "odd", {"status": "perhaps"})
    await service.docs.put("modules", "odd/m", {"nothing": 1})
    found = (await service.call("GET", "/devices")).json()
    assert [device["deviceId"] for device in found] == ["a"]
    for source in ("devices", "devices.modules"):
        answer = await service.call("POST", "/devices/query", {"query": f"select * from {source}"})
        assert answer.status_code == 200
