"""Rules with their conditions in SQL."""

from alert_world import World, settle

from headrace.alerts.service import AlertService
from headrace.core.config import AlertConfig
from headrace.core.observe.metrics import Metrics
from headrace.core.schema import event_batch


async def start(world, **rules):
    service = AlertService(world.log, world.docs, world.clock, rules=rules, channels={}, metrics=Metrics())
    for watch in service.watches:
        await watch.restore()
    return service


async def test_a_condition_in_sql_opens_an_incident_with_the_events_fields():
    world = World()
    rule = AlertConfig(stream="s", when="t > 90 AND machineId <> 'm2'", title="{machineId}: {t}", key="machineId")
    service = await start(world, hot=rule)
    assert service.problems() == {}
    await world.send("m1", 95.5, nested={"a": [1, None]})
    await world.send("m2", 95.5)
    await world.log.append("s", event_batch({"_event_id": ["x"], "_device": ["m3"], "_body": [b"no json"]}))
    await settle(service)
    (incident,) = await service.store.open()
    assert (incident.key, incident.title, incident.fields["t"]) == ("m1", "m1: 95.5", 95.5)


async def test_an_error_in_a_condition_says_where_it_is():
    world = World()
    service = await start(
        world, bad=AlertConfig(stream="s", when="t > > 90"), good=AlertConfig(stream="s", when="t > 90")
    )
    assert list(service.problems()) == ["alerts.bad"]
    assert "line 1" in service.problems()["alerts.bad"]
    await world.send("m1", 95)
    await settle(service)
    assert [incident.rule for incident in await service.store.open()] == ["good"]
