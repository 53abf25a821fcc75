"""Who looks at the fleet page: once a second the state is brought up to date, encoded once and given to all of them.

A browser that falls behind by more than a few seconds skips what it missed and gets a fresh snapshot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.web import sse
from headrace.web.alerts import Alert, alert_of, worst_by_entity
from headrace.web.fleet import Fleet
from headrace.web.services import Incidents
from headrace.web.tasks import end

log = structlog.get_logger()

BEHIND_MAX = 5
HEARTBEAT_S = 10.0
ALERTS_MAX = 200


class Viewer:
    """One browser's queue: at most BEHIND_MAX messages, then only the wish for a snapshot."""

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.behind = False
        self.ready = asyncio.Event()

    def put(self, chunk: bytes) -> None:
        if len(self.queue) >= BEHIND_MAX:
            self.queue.clear()
            self.behind = True
        if not self.behind:
            self.queue.append(chunk)
        self.ready.set()


class FleetRoom:
    """Keeps the fleet and its alerts up to date and tells those who watch."""

    def __init__(
        self,
        fleet: Fleet,
        incidents: Incidents,
        *,
        clock: Clock,
        tick_s: float = 1.0,
        tiles_max: int = 2000,
        viewers_max: int = 200,
    ) -> None:
        self.alerts: Sequence[Alert] = ()
        self.alerts_problem = ""
        self._fleet = fleet
        self._incidents = incidents
        self._clock = clock
        self._tick_s = tick_s
        self._tiles_max = tiles_max
        self._viewers_max = viewers_max
        self._viewers: list[Viewer] = []
        self._closed = False

    def snapshot(self) -> bytes:
        return self._fleet.snapshot(self._clock.now(), limit=self._tiles_max)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run(), name="fleet-room")
        try:
            yield
        finally:
            self.close()
            await end([task])

    def close(self) -> None:
        self._closed = True
        for viewer in self._viewers:
            viewer.ready.set()

    async def tick(self) -> None:
        """What happens every second; tests call it themselves."""
        changed_alerts = await self._read_alerts()
        now = self._clock.now()
        changed = self._fleet.tick(now)
        if not self._viewers:
            return
        delta = sse.message("delta", self._fleet.delta(changed, now, limit=self._tiles_max))
        for viewer in self._viewers:
            viewer.put(delta)
        if changed_alerts:
            self._tell_alerts()

    async def refresh_alerts(self) -> None:
        """After a command: what it changed is seen at once, not at the next tick."""
        if await self._read_alerts():
            self._tell_alerts()

    async def messages(self) -> AsyncIterator[bytes]:
        """A snapshot, the open alerts, then deltas until closed."""
        if len(self._viewers) >= self._viewers_max:
            raise Unavailable(f"{self._viewers_max} browsers watch the fleet already", hint="close some and try again")
        viewer = Viewer()
        self._viewers.append(viewer)
        try:
            yield sse.message("snapshot", self.snapshot())
            yield self._alerts_message()
            while not self._closed:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await viewer.ready.wait()
                except TimeoutError:
                    yield sse.HEARTBEAT
                    continue
                viewer.ready.clear()
                if viewer.behind:
                    viewer.behind = False
                    yield sse.message("snapshot", self.snapshot())
                    yield self._alerts_message()
                while viewer.queue:
                    yield viewer.queue.popleft()
        finally:
            self._viewers.remove(viewer)

    async def _run(self) -> None:
        while not self._closed:
            try:
                await self.tick()
            except Exception:  # a mistake must not freeze every screen: say so and go on
                log.exception("fleet.tick_failed")
            await self._clock.sleep(self._tick_s)

    async def _read_alerts(self) -> bool:
        try:
            async with asyncio.timeout(10.0):
                found = await self._incidents.list(state="open", limit=ALERTS_MAX)
        except (Unavailable, TimeoutError) as exc:
            self.alerts_problem = str(exc) or "the alerts do not answer"
            return False
        self.alerts_problem = ""
        alerts = [alert_of(incident) for incident in found]
        if alerts == list(self.alerts):
            return False
        self.alerts = alerts
        self._fleet.set_incidents(worst_by_entity(alerts))
        return True

    def _tell_alerts(self) -> None:
        chunk = self._alerts_message()
        for viewer in self._viewers:
            viewer.put(chunk)

    def _alerts_message(self) -> bytes:
        return sse.message("alerts", {"alerts": self.alerts})
