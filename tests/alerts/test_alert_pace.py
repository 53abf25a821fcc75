"""How often a watch writes what it remembers."""

from alert_world import World, settle

from headrace.alerts.watch import STATES


async def test_events_that_match_nothing_are_remembered_every_ten_seconds_and_openings_at_once():
    world = World()
    service = await world.started()
    etags = []
    for _ in range(40):
        world.clock.advance(0.5)
        await world.send("m1", 20)
        await settle(service, steps=1)
        found = await world.docs.get(STATES, "s")
        etags.append(found and found.etag)
    assert len(set(etags) - {None}) == 2
    await world.send("m1", 95)
    await settle(service, steps=1)
    assert (await world.docs.get(STATES, "s")).etag not in etags
