"""The API: every answer, every refusal, and what it says to a browser about safety."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
import pytest
from plant import Incidents, Plant, ShiftedClock, backfill, services_of, set_some_aside, until

from headrace.alerts.incidents import IncidentStore
from headrace.alerts.model import Incident
from headrace.core.clock import TICKS_PER_S, ManualClock
from headrace.core.errors import Unavailable
from headrace.core.schema import event_batch
from headrace.docstore.memory import MemoryDocStore
from headrace.eventlog.memory import MemoryEventLog
from headrace.web import security
from headrace.web.alerts import alert_of, worst_by_entity
from headrace.web.app import create_app
from headrace.web.serve import serve
from headrace.web.shared import Shared
from headrace.web.threads import Threads

EVIL = "<img src=x onerror=alert(1)>/\"'&é"


@asynccontextmanager
async def console() -> AsyncIterator[tuple[httpx.AsyncClient, Plant, Incidents]]:
    """A console over ten machines with a minute of history and one alert."""
    clock, incidents = ShiftedClock(), Incidents()
    plant = Plant(MemoryEventLog(clock), machines=2)
    await backfill(plant, clock, 60, step_s=5)
    await set_some_aside(plant)
    incidents.open("i1", "fac1-cnc-001", "critical", "fac1-cnc-001 runs hot", clock.now(), temperature=91.5)
    app = create_app(await services_of(plant.log, clock, incidents), linger_s=0.0, tick_s=0.01)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        await until(lambda: len(app.state.fleet.ids) == 10 and bool(app.state.room.alerts and app.state.fleet.fields))
        yield client, plant, incidents


def fleet_ids(client: httpx.AsyncClient) -> list[str]:
    app = client._transport.app  # type: ignore[attr-defined]
    return list(app.state.fleet.ids)


async def test_the_fleet_lists_every_machine_with_its_site_values_and_state() -> None:
    async with console() as (client, _, _):
        fleet = (await client.get("/api/fleet")).json()
        assert {name for _, name, _ in fleet["names"]} >= {"fac1-cnc-001", "fac5-cnc-002"}
        assert fleet["sites"]["fac1"]["devices"] == 2
        assert fleet["sites"]["fac1"]["critical"] == 1
        assert fleet["totals"]["devices"] == fleet["totals"]["active"] == 10
        slot = {name: slot for slot, name, _ in fleet["names"]}["fac1-cnc-001"]
        index = fleet["rows"]["slot"].index(slot)
        assert fleet["states"][fleet["rows"]["state"][index]] == "critical"
        assert 40 < fleet["rows"]["fields"]["temperature"][index] < 110


async def test_a_device_has_its_values_alerts_and_streams() -> None:
    async with console() as (client, _, _):
        device = (await client.get("/api/devices/fac1-cnc-001")).json()
        assert device["site"] == "fac1"
        assert device["alerts"][0]["title"] == "fac1-cnc-001 runs hot"
        assert device["values"]["rpm"] > 0
        assert device["streams"]["scored"] == "scored"


async def test_a_registered_device_that_never_sent_is_there_and_its_keys_are_not() -> None:
    clock = ShiftedClock()
    services = await services_of(MemoryEventLog(clock), clock, Incidents())
    record = {"entity_id": "press-1", "site": "fac9", "status": "enabled", "primary_key": "c2VjcmV0", "created": 1}
    await services.docs.put("devices", "gateway-7", record)
    app = create_app(services)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/api/devices/press-1")
        assert answer.json()["registered"] == {"id": "gateway-7", "status": "enabled", "site": "fac9"}
        assert (answer.json()["state"], answer.json()["seen"]) == ("quiet", 0)
        assert "c2VjcmV0" not in answer.text + (await client.get("/api/fleet")).text


async def test_the_alert_services_own_incidents_are_understood() -> None:
    clock = ShiftedClock()
    docs = MemoryDocStore(clock)
    store = IncidentStore(docs, clock)
    opened = clock.now()
    incident = Incident(
        id="i9", rule="hot", stream="scored", key="m1", severity="critical", title="m1", opened=opened, last_seen=opened
    )
    await store.write([incident])
    assert worst_by_entity([alert_of(one) for one in await store.list(state="open")]) == {"m1": "critical"}
    taken = alert_of(await store.acknowledge("i9", "ada"))
    assert (taken.state, taken.acknowledged_by, taken.opened) == ("acknowledged", "ada", opened / 10_000)


async def test_history_gives_columns_and_the_place_where_live_goes_on() -> None:
    async with console() as (client, plant, _):
        answer = (await client.get("/api/history", params={"stream": "telemetry", "entity": "fac2-cnc-001"})).json()
        assert len(answer["t"]) == 12
        assert answer["t"] == sorted(answer["t"])
        assert len(answer["fields"]["temperature"]) == 12
        positions = (await plant.log.bounds("telemetry"))[1]
        assert answer["resume"] == f"telemetry:{','.join(map(str, positions))}"


async def test_history_of_chosen_fields_and_a_range_in_iso_times() -> None:
    async with console() as (client, _, _):
        query = {"stream": "telemetry", "fields": "rpm,load", "since": "2020-01-01T00:00:00Z", "until": "-30s"}
        answer = (await client.get("/api/history", params=query)).json()
        assert set(answer["fields"]) == {"rpm", "load"}
        assert 0 < len(answer["t"]) < 120


async def test_a_stream_that_the_settings_name_but_nobody_wrote_to_is_empty() -> None:
    async with console() as (client, plant, _):
        plant.log._streams.pop("anomalies", None)
        answer = (await client.get("/api/history", params={"stream": "anomalies", "entity": "x"})).json()
        assert (answer["t"], answer["resume"]) == ([], "anomalies:")
        assert "anomalies" not in await plant.log.streams()


@pytest.mark.parametrize(
    ("path", "status", "code", "part"),
    [
        ("/api/history?stream=telemetri", 404, "user.not_found", "did you mean 'telemetry'?"),
        ("/api/history?stream=telemetry&since=yesterday", 400, "user", "ISO 8601"),
        ("/api/history?stream=telemetry&since=-1m&until=-2m", 400, "user", "swap"),
        ("/api/history", 400, "web.http_400", "stream"),
        ("/api/history?stream=telemetry&points=1000000000", 400, "web.http_400", "points"),
        ("/api/live?entity=a&from=nonsense", 400, "web.bad_token", "resume"),
        ("/api/live?entity=a&streams=nope", 404, "user.not_found", "known"),
        ("/api/devices/nobody", 404, "user.not_found", "/api/fleet"),
        ("/api/nothing", 404, "web.http_404", "/schema"),
    ],
)
async def test_a_wrong_question_says_what_to_change(path: str, status: int, code: str, part: str) -> None:
    async with console() as (client, _, _):
        response = await client.get(path)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert part in error["message"] + error["hint"]


async def test_sql_answers_with_columns_and_rows() -> None:
    async with console() as (client, _, _):
        sql = "SELECT _site AS site, count(*) AS n FROM telemetry GROUP BY ALL ORDER BY site"
        answer = (await client.post("/api/query", json={"sql": sql})).json()
        assert [column["name"] for column in answer["columns"]] == ["site", "n"]
        assert answer["rows"][0] == ["fac1", 24]
        assert answer["truncated"] is False


async def test_a_long_answer_is_cut_and_says_so() -> None:
    async with console() as (client, _, _):
        answer = (await client.post("/api/query", json={"sql": "SELECT range AS n FROM range(50)", "limit": 10})).json()
        assert (len(answer["rows"]), answer["truncated"]) == (10, True)


async def test_wrong_sql_is_a_users_error_with_the_place() -> None:
    async with console() as (client, _, _):
        response = await client.post("/api/query", json={"sql": "SELEKT 1"})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "query.sql"


async def test_values_that_javascript_cannot_hold_are_text() -> None:
    async with console() as (client, _, _):
        sql = "SELECT 9007199254740993::BIGINT a, 1::BIGINT b, [1,2] c, 'x'::BLOB d, 1.50::DECIMAL(5,2) e, 'nan'::DOUBLE f"
        answer = (await client.post("/api/query", json={"sql": sql})).json()
        assert answer["rows"] == [["9007199254740993", 1, "[1,2]", "x", "1.50", None]]


async def test_an_alert_is_acknowledged_once_and_for_all_viewers() -> None:
    async with console() as (client, _, incidents):
        answer = await client.post("/api/alerts/i1/acknowledge", json={"by": "ada", "note": "on it"})
        assert (answer.status_code, answer.json()["state"]) == (200, "acknowledged")
        assert incidents.all[0]["acknowledged_by"] == "ada"
        listed = (await client.get("/api/alerts", params={"only": "open"})).json()["alerts"]
        assert [(one["id"], one["acknowledged_by"]) for one in listed] == [("i1", "ada")]
        assert (await client.post("/api/alerts/none/acknowledge", json={})).status_code == 404


async def test_ledger_status_streams_and_what_was_set_aside_are_there() -> None:
    async with console() as (client, _, _):
        assert (await client.get("/api/ledger")).json()["balanced"] is False
        assert len((await client.get("/api/status")).json()["parts"]) == 6
        streams = {one["name"]: one for one in (await client.get("/api/streams")).json()}
        assert streams["telemetry"]["events"] == 120
        aside = (await client.get("/api/set-aside")).json()
        assert {(one["reason"], one["stage"]) for one in aside} == {
            ("undecodable", "job:factory"),
            ("wrong_type", "job:factory"),
        }


async def test_health_metrics_and_the_schema_are_served() -> None:
    async with console() as (client, _, _):
        assert (await client.get("/health")).json() == {"healthy": True, "problems": {}}
        assert 'headrace_web_rows_total{stream="telemetry"}' in (await client.get("/metrics")).text
        schema = (await client.get("/schema")).json()
        assert {"/api/fleet", "/api/history", "/api/live", "/api/query"} <= schema["paths"].keys()


async def test_every_answer_carries_security_headers_and_pages_hold_no_inline_script() -> None:
    async with console() as (client, _, _):
        for path in (
            "/",
            "/machine?id=x",
            "/history",
            "/operations",
            "/api/fleet",
            "/api/nothing",
            "/static/js/live.js",
        ):
            response = await client.get(path, headers={"accept": "text/html"})
            assert response.headers["content-security-policy"] == security.HEADERS["Content-Security-Policy"], path
            assert response.headers["x-content-type-options"] == "nosniff"
        page = (await client.get("/")).text
        assert "unsafe" not in security.HEADERS["Content-Security-Policy"]
        assert all('src="/static/' in tag for tag in page.split("<script")[1:])
        assert "style=" not in page


async def test_a_hostile_device_name_is_only_text() -> None:
    async with console() as (client, plant, _):
        rows = event_batch({"_event_id": ["evil"], "_device": [EVIL], "_body": [b'{"temperature": 1.0}']})
        await plant.log.append("telemetry", rows)
        page = (await client.get("/machine", params={"id": EVIL})).text
        assert "<img" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
        await until(lambda: EVIL in fleet_ids(client))
        answer = await client.get(f"/api/devices/{quote(EVIL, safe='')}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == EVIL
        assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"content-type": "text/plain"},
    ],
)
async def test_commands_from_elsewhere_are_refused(headers: dict[str, str]) -> None:
    async with console() as (client, _, incidents):
        given = {"content-type": "application/json", **headers}
        response = await client.post("/api/alerts/i1/acknowledge", content=b"{}", headers=given)
        assert response.status_code == 403
        assert incidents.all[0]["state"] == "open"


async def test_a_page_that_is_not_there_is_a_page() -> None:
    async with console() as (client, _, _):
        response = await client.get("/nowhere", headers={"accept": "text/html"})
        assert response.status_code == 404
        assert "Back to the live page" in response.text


def test_a_console_open_to_the_network_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from headrace.web.app import warn_if_open

    warn_if_open("127.0.0.1")
    assert capsys.readouterr().err == ""
    warn_if_open("0.0.0.0")
    assert "asks nobody to sign in" in capsys.readouterr().err


async def test_stopping_does_not_wait_for_live_connections() -> None:
    clock = ShiftedClock()
    plant = Plant(MemoryEventLog(clock), machines=1)
    await plant.step(clock.now() / TICKS_PER_S)
    app = create_app(await services_of(plant.log, clock, Incidents()))
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, on_started=started.set_result))
    base = f"http://127.0.0.1:{await asyncio.wait_for(started, 5)}"
    async with httpx.AsyncClient(base_url=base, timeout=10) as client, asyncio.TaskGroup() as group:
        opened = [asyncio.Event(), asyncio.Event()]

        async def listen(path: str, ready: asyncio.Event) -> None:
            async with client.stream("GET", path) as response:
                async for _ in response.aiter_bytes():
                    ready.set()

        group.create_task(listen("/api/live/fleet", opened[0]))
        group.create_task(listen("/api/live?entity=fac1-cnc-001", opened[1]))
        await asyncio.wait_for(asyncio.gather(*(ready.wait() for ready in opened)), 5)
        begun = clock.monotonic()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert clock.monotonic() - begun < 2.0  # and both streams ended, or the group would still wait


async def test_a_port_that_is_taken_is_named() -> None:
    clock = ShiftedClock()
    app = create_app(await services_of(MemoryEventLog(clock), clock, Incidents()))
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, on_started=started.set_result))
    port = await asyncio.wait_for(started, 5)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        await serve(app, "127.0.0.1", port)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_report_is_made_once_for_all_who_ask_together_and_again_when_it_is_old() -> None:
    clock, made = ManualClock(), []

    async def report() -> dict[str, int]:
        made.append(1)
        await asyncio.sleep(0)
        return {"n": len(made)}

    shared = Shared(report, clock, age_s=5.0)
    assert await asyncio.gather(shared.get(), shared.get(), shared.get()) == [{"n": 1}] * 3
    clock.advance(6)
    assert await shared.get() == {"n": 2}


async def test_only_so_many_queries_run_at_once() -> None:
    threads = Threads(at_once=1, queue_s=0.01, timeout_s=5)
    hold = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> int:
        asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(5)
        return 1

    first = asyncio.create_task(threads.run(slow))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many"):
        await threads.run(lambda: 2)
    hold.set()
    assert await first == 1
    assert await threads.run(lambda: 3) == 3
