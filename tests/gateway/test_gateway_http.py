"""The HTTPS door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gateway_parts import HOST, KEY, Hub, device, properties_of, rows_of

from headrace.core.clock import TICKS_PER_S
from headrace.core.identity import message_event_id
from headrace.wire.iothub import sas


class Caller:
    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.http = httpx.AsyncClient(
            base_url=f"https://{HOST}:{hub.ports.https_port}", verify=hub.authority.client_context()
        )

    def token(self, id: str, key: str = KEY) -> str:
        return sas.build(f"{HOST}/devices/{id}", key, expires_s=self._hub.clock.now() // TICKS_PER_S + 60)

    async def post(
        self, id: str, body: bytes = b"{}", headers: Mapping[str, str] | None = None, *, token: str | None = None
    ) -> httpx.Response:
        authorization = {"authorization": self.token(id) if token is None else token}
        path = f"/devices/{quote(id, safe='')}/messages/events?api-version=2020-03-13"
        return await self.http.post(path, content=body, headers=authorization | dict(headers or {}))


@pytest.fixture
async def caller(hub: Hub) -> AsyncIterator[Caller]:
    made = Caller(hub)
    yield made
    await made.http.aclose()


async def test_a_posted_event_is_in_the_log_when_it_is_answered(hub: Hub, caller: Caller) -> None:
    headers = {
        "iothub-messageid": "m 1",
        "iothub-app-Type": "alarm",
        "iothub-app-x": "a b",
        "content-type": "text/plain",
    }
    answer = await caller.post("dev-0", b"hello", headers)
    assert (answer.status_code, answer.content) == (204, b"")
    (row,) = await rows_of(hub.log)
    assert (row["_device"], row["_body"], row["_type"], row["_site"]) == ("dev-0", b"hello", "alarm", "north")
    assert row["_event_id"] == message_event_id("dev-0", None, "m 1")
    assert row["_content_type"] == "text/plain"
    assert properties_of(row)["application"] == {"type": "alarm", "x": "a b"}


async def test_an_escaped_device_id_is_the_device(hub: Hub, caller: Caller) -> None:
    hub.devices.change("p+#s", device("p+#s"))
    answer = await caller.post("p+#s")
    assert answer.status_code == 204


async def test_strangers_get_401_and_learn_nothing(caller: Caller) -> None:
    unknown = await caller.post("nobody")
    wrong = await caller.post("dev-0", token=caller.token("dev-0", "eA=="))
    assert (unknown.status_code, wrong.status_code) == (401, 401)
    assert unknown.json()["message"] == wrong.json()["message"]
    for token in ("", "Bearer x"):
        assert (await caller.post("dev-0", token=token)).json()["code"] == "gateway.token_malformed"
    other = await caller.post("dev-0", token=caller.token("dev-1"))
    assert (other.status_code, other.json()["code"]) == (401, "gateway.token_resource")


async def test_other_paths_and_methods_are_told(caller: Caller) -> None:
    for path in ("/", "/devices/dev-0/messages", "/devices//messages/events", "/devices/a/b/messages/events"):
        answer = await caller.http.post(path)
        assert (answer.status_code, answer.headers["iothub-errorcode"]) == (404, "NotFound")
    assert (await caller.http.get("/devices/dev-0/messages/events")).status_code == 405


async def test_a_message_above_the_limit_is_413_and_set_aside(hub: Hub, caller: Caller) -> None:
    answer = await caller.post("dev-0", b"x" * 262_145)
    assert (answer.status_code, answer.json()["code"]) == (413, "gateway.too_large")
    assert (await caller.post("dev-0", b"x" * 262_144)).status_code == 204
    (row,) = await rows_of(hub.log, "set_aside")
    assert (row["_type"], len(row["_body"])) == ("too_large", 65_536)


async def test_a_property_without_a_name_is_400(caller: Caller) -> None:
    assert (await caller.post("dev-0", headers={"iothub-app-": "x"})).status_code == 400


async def test_a_log_in_trouble_is_503_with_a_time_to_come_back(hub: Hub, caller: Caller) -> None:
    hub.gateway.ingress.trouble = "the disk is full"
    answer = await caller.post("dev-0")
    assert (answer.status_code, answer.json()["code"]) == (503, "gateway.unavailable")
    assert answer.headers["retry-after"] == "5"


async def test_more_than_the_rate_is_429(tmp_path: Path) -> None:
    hub = Hub(tmp_path, events_per_s_max=1)
    await hub.start()
    caller = Caller(hub)
    try:
        hub.gateway.ingress._limit.take(10)
        answer = await caller.post("dev-0")
        assert (answer.status_code, answer.json()["code"]) == (429, "gateway.throttled")
        assert "[limits] messages_per_s is 1" in answer.json()["message"]
        assert answer.headers["retry-after"] in ("8", "9")  # ten were taken, one of them in advance
        hub.gateway.ingress.full = True
        assert (await caller.post("dev-0")).status_code == 429  # it is the limit that keeps it full
    finally:
        await caller.http.aclose()
        await hub.stop()
