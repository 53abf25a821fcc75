"""The service over stores: durable incidents, restarts, announcements, notices."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from alert_world import HOT, Recorder, World, settle

from headrace.alerts.channel import Notice, build_channels
from headrace.alerts.incidents import INCIDENTS
from headrace.alerts.notifier import QUEUE_MAX, Notifier
from headrace.alerts.watch import STATES
from headrace.core.config import AlertConfig, ChannelConfig, Secret
from headrace.core.errors import NotFound, Unavailable, UserError


async def notified(service, channel=None, name="log"):
    """Run the notifier until it has nothing left to say."""
    if channel is not None:
        service.notifier._channels[name] = channel
    task = asyncio.create_task(service.notifier.run())
    try:
        await service.notifier.drained(10)
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)


async def test_a_hot_machine_opens_one_incident_that_holds_and_resolves():
    world = World()
    service = await world.started()
    await world.send("m1", 20)
    await world.send("m1", 95)
    await settle(service)
    world.clock.advance(1)
    await world.send("m1", 97)
    world.clock.advance(2)
    await settle(service)
    (incident,) = await service.store.list(state="active")
    assert (incident.key, incident.title, incident.severity, incident.state) == (
        "m1",
        "m1 runs hot",
        "critical",
        "open",
    )
    assert (incident.events, incident.peak["t"], incident.device) == (2, 97.0, "m1")
    world.clock.advance(70)
    await settle(service)
    assert await service.store.open() == []
    (incident,) = await service.store.history("m1")
    assert (incident.state, incident.resolved) == ("resolved", incident.last_seen + 600_000_000)
    assert [(row["state"], row["key"], row["rule"]) for row in await world.announced()] == [
        ("open", "m1", "hot"),
        ("resolved", "m1", "hot"),
    ]


@pytest.mark.parametrize("kill_at", range(1, 12))
async def test_killed_at_any_write_no_incident_is_lost_doubled_or_miscounted(kill_at):
    world = World()
    left = kill_at

    class Killed(Exception):
        pass

    def deadly(call):
        async def wrapped(*given, **named):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return await call(*given, **named)

        return wrapped

    service = await world.started()
    originals = world.docs.put_many, world.docs.put, world.log.append
    script = [("m1", 95), ("m1", 96), ("m2", 99), ("m1", 20), None, ("m1", 91), ("m2", 92)]
    for step in script:
        if step is None:
            world.clock.advance(90)
        else:
            await world.send(*step)
        world.docs.put_many, world.docs.put = deadly(originals[0]), deadly(originals[1])
        world.log.append = deadly(originals[2])
        try:
            await settle(service)
        except Killed:
            world.docs.put_many, world.docs.put, world.log.append = originals
            service = await world.started()
        finally:
            world.docs.put_many, world.docs.put, world.log.append = originals
        await settle(service)
    world.clock.advance(90)
    await settle(service)
    found = sorted((i.key, i.opened, i.events, i.state) for i in await service.store.list())
    assert [(key, events, state) for key, _, events, state in found] == [
        ("m1", 2, "resolved"),
        ("m1", 1, "resolved"),
        ("m2", 1, "resolved"),
        ("m2", 1, "resolved"),
    ]
    announced = [(row["id"], row["state"]) for row in await world.announced()]
    assert len(announced) == len(set(announced)) == 8


async def test_positions_follow_what_is_stored():
    world = World()
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    assert sum(await world.log.committed("alerts", "s")) == 1


async def test_a_restart_in_the_middle_goes_on_with_the_same_incident():
    world = World()
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    (before,) = await service.store.open()
    service = await world.started()
    await world.send("m1", 99)
    world.clock.advance(2)
    await settle(service)
    (after,) = await service.store.open()
    assert (after.id, after.events, after.peak["t"]) == (before.id, 2, 99.0)


async def test_acknowledged_stays_acknowledged_until_resolved_and_keeps_the_name():
    world = World()
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    (incident,) = await service.store.open()
    seen = await service.store.acknowledge(incident.id, "ana", "on my way")
    assert (seen.state, seen.acknowledged_by, seen.note) == ("acknowledged", "ana", "on my way")
    world.clock.advance(2)
    await world.send("m1", 98)
    await settle(service)
    (held,) = await service.store.list(state="acknowledged")
    assert (held.events, held.acknowledged_by) == (2, "ana")
    world.clock.advance(90)
    await settle(service)
    (done,) = await service.store.list(state="resolved")
    assert (done.state, done.acknowledged_by) == ("resolved", "ana")


async def test_an_acknowledgement_is_announced_once_also_after_a_restart():
    world = World()
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    (incident,) = await service.store.open()
    await service.store.acknowledge(incident.id, "ana", "on my way")
    await world.docs.put("incident_acks", "of-nothing", {"at": 1, "by": "x"})
    assert await service.acknowledgements.step(wait_s=0) == 2
    for _ in range(2):
        service = await world.started()
        await world.docs.delete("alert_cursors", "incident_acks")  # as if killed before the cursor was written
        await service.acknowledgements.step(wait_s=0)
    told = [(row["state"], row["acknowledged_by"], row["note"]) for row in await world.announced()]
    assert told == [("open", "", ""), ("acknowledged", "ana", "on my way")]


async def test_wrong_commands_on_incidents_are_refused():
    store = World().service().store
    with pytest.raises(NotFound):
        await store.acknowledge("nothing", "ana")
    with pytest.raises(UserError, match="needs a name"):
        await store.acknowledge("nothing", " ")
    with pytest.raises(UserError, match="did you mean 'resolved'"):
        await store.list(state="resolve")


async def test_many_incidents_list_newest_first_with_their_acknowledgements():
    world = World()
    service = await world.started()
    for n in range(30):
        await world.send(f"m{n}", 95)
        world.clock.advance(0.01)
    await settle(service)
    everything = await service.store.list(limit=100)
    assert [i.opened for i in everything] == sorted((i.opened for i in everything), reverse=True)
    await service.store.acknowledge(everything[3].id, "bo")
    await service.store.acknowledge(everything[29].id, "cy")
    by = [i.acknowledged_by for i in await service.store.list(limit=100)]
    assert (by[3], by[29], by.count("")) == ("bo", "cy", 28)
    assert len(await service.store.list(limit=5)) == 5


async def test_a_wrong_rule_is_reported_and_stops_nothing_else():
    world = World()
    rules = {
        "broken": AlertConfig(stream="s", when="t >"),
        "loop": AlertConfig(stream="alerts", when="t > 1"),
        "off": AlertConfig(stream="s", when="nonsense", enabled=False),
        "hot": HOT,
    }
    service = await world.started(rules=rules)
    assert sorted(service.problems()) == ["alerts.broken", "alerts.loop"]
    assert "line 1, column 1" in service.problems()["alerts.broken"]
    await world.send("m1", 95)
    await settle(service)
    assert len(await service.store.open()) == 1


async def test_an_unknown_channel_is_reported_and_the_incident_still_opens():
    world = World()
    rule = AlertConfig(stream="s", when="t > 90", channels=("ops", "log"))
    service = await world.started(
        rules={"hot": rule}, channels={"opps": ChannelConfig(url=Secret("json://127.0.0.1:9/"))}
    )
    assert "did you mean 'opps'" in service.problems()["alerts.hot.channels"]
    await world.send("m1", 95)
    await settle(service)
    assert (await service.store.open())[0].channels == ("log",)


async def test_an_address_nobody_understands_is_reported_without_its_secret():
    service = World().service(channels={"bad": ChannelConfig(url=Secret("carrierpigeon://token-123@loft"))})
    text = service.problems()["channels.bad"]
    assert "carrierpigeon" in text
    assert "token-123" not in text


async def test_a_rule_that_is_gone_leaves_no_incident_open():
    world = World()
    service = await world.started(rules={"hot": HOT, "warm": AlertConfig(stream="s", when="t > 50")})
    await world.send("m1", 95)
    await settle(service)
    assert len(await service.store.open()) == 2
    service = await world.started()
    assert [i.rule for i in await service.store.open()] == ["hot"]
    service = world.service(rules={})
    await service.close_abandoned()
    assert await service.store.open() == []


async def test_the_key_may_be_a_field_of_the_event():
    world = World()
    service = await world.started(rules={"hot": AlertConfig(stream="s", when="t > 90", key="line", for_s=1.0)})
    await world.send("m1", 95, line="L7")
    await world.send("m2", 95)
    await settle(service)
    world.clock.advance(2)
    await world.send("m1", 95, line="L7")
    await world.send("m2", 20)
    await world.send("m2", 95)
    await settle(service)
    assert [i.key for i in await service.store.open()] == ["L7"]


async def test_each_opening_and_resolution_is_told_once_also_after_restarts():
    world, channel = World(), Recorder()
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    await notified(service, channel)
    for _ in range(2):
        service = await world.started()
        await world.send("m1", 96)
        await settle(service)
        await service.sweep()
        await notified(service, channel)
    world.clock.advance(90)
    await settle(service)
    service = await world.started()  # killed before anybody was told of the end
    await service.sweep()
    await notified(service, channel)
    assert [(notice.step, notice.title) for notice in channel.notices] == [
        ("open", "m1 runs hot"),
        ("resolved", "Resolved: m1 runs hot"),
    ]
    (incident,) = await service.store.list()
    assert incident.notified == {"log:open": "sent", "log:resolved": "sent"}
    assert "t: 96" in channel.notices[1].text


async def until(clock, task, seconds=60):
    """Move the clock until the task is done."""
    for _ in range(seconds * 20):
        if task.done():
            return
        await asyncio.wait([task], timeout=0.005)
        clock.advance(1)


async def test_a_channel_that_fails_at_first_is_tried_again():
    world, channel = World(), Recorder(failures=2)
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    await until(world.clock, asyncio.create_task(notified(service, channel)))
    assert (channel.calls, len(channel.notices)) == (3, 1)


async def test_a_channel_that_never_answers_is_shown_on_the_incident_and_not_tried_for_ever():
    world, channel = World(), Recorder(failures=1000)
    service = await world.started()
    await world.send("m1", 95)
    await settle(service)
    await until(world.clock, asyncio.create_task(notified(service, channel)))
    incident = await service.store.get((await service.store.list())[0].id)
    assert incident.notified == {"log:open": "failed: no line"}
    assert await service.store.waiting() == []
    assert b'outcome="failed"} 1.0' in service._metrics.expose()


async def test_old_news_is_stored_but_rings_nobody():
    world, channel = World(), Recorder()
    await world.send("m1", 95)
    world.clock.advance(7200)
    service = await world.started()
    await settle(service)
    await notified(service, channel)
    assert channel.notices == []
    (incident,) = await service.store.list()
    assert incident.notified["log:open"] == "skipped: too old"


async def test_a_full_queue_delays_notices_and_loses_none():
    world, channel = World(), Recorder()
    service = await world.started()
    for n in range(QUEUE_MAX + 50):
        await world.send(f"m{n}", 95)
    await settle(service)
    await notified(service, channel)
    assert len(channel.notices) == QUEUE_MAX
    await service.sweep()
    service.notifier = Notifier(
        {"log": channel}, clock=world.clock, rng=service.notifier._rng, metrics=service._metrics, told=service._told
    )
    await service.sweep()
    await notified(service)
    assert len({notice.incident for notice in channel.notices}) == len(channel.notices) == QUEUE_MAX + 50


async def test_a_webhook_gets_the_title_and_the_fields():
    received = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given):
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        world = World()
        rule = AlertConfig(stream="s", when="t > 90", title="{machineId} runs hot", channels=("hook",))
        url = Secret(f"json://127.0.0.1:{server.server_port}/alerts")
        service = await world.started(rules={"hot": rule}, channels={"hook": ChannelConfig(url=url)})
        await world.send("m1", 95)
        await settle(service)
        await notified(service)
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
    assert [(hook["title"], hook["type"]) for hook in received] == [("m1 runs hot", "warning")]
    assert "t: 95" in received[0]["message"]


def test_a_webhook_nobody_answers_is_unavailable_and_shows_no_secret():
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = server.server_port
    server.server_close()
    channels, _ = build_channels({"hook": ChannelConfig(url=Secret(f"json://user:secret@127.0.0.1:{port}/"))})
    with pytest.raises(Unavailable, match="channel 'hook' did not take") as caught:
        channels["hook"].send(Notice("i", "r", "k", "warning", "open", "title", "text"))
    assert "secret" not in str(caught.value)


async def test_running_the_whole_service_opens_tells_and_stops_when_cancelled():
    world = World()
    service = world.service()
    task = asyncio.create_task(service.run())
    await world.send("m1", 95)
    sequence, outcome = 0, {}
    while not outcome:
        steps = await world.docs.changes(INCIDENTS, sequence, wait_s=10)
        assert steps, "nothing was told within 10 s"
        sequence, outcome = steps[-1].sequence, steps[-1].body["notified"]
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert await world.docs.count(INCIDENTS) == await world.docs.count(STATES) == 1
