"""Telling people: one worker a channel, so that a slow one holds up neither another nor the evaluation.

A notice is sent at least once and marked on the incident; what was marked is never sent again, also after a restart. What
could not be queued stays due on its document and is found again by the service's next sweep.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from headrace.alerts.channel import Channel, Notice
from headrace.alerts.incidents import untold
from headrace.alerts.model import Incident
from headrace.core.clock import TICKS_PER_S, Clock, to_iso
from headrace.core.errors import Unavailable
from headrace.core.observe.metrics import Metrics
from headrace.core.retry import retry

log = structlog.get_logger()
QUEUE_MAX = 500  # a channel
SEND_TIMEOUT_S = 15.0
TRIES_MAX = 5
AGE_MAX_S = 3600.0  # older news is not news: a rule added to a week of history should not ring for an hour
_FIELDS_SHOWN = 12

Told = Callable[[str, str, str], Awaitable[None]]
"""(incident id, notice, outcome): the outcome is known and must be kept."""


class Notifier:
    """Queues and workers. `told` is awaited with each outcome: `sent`, `skipped: …` or `failed: …`."""

    def __init__(
        self, channels: Mapping[str, Channel], *, clock: Clock, rng: random.Random, metrics: Metrics, told: Told
    ) -> None:
        self._channels, self._clock, self._rng, self._told = channels, clock, rng, told
        self._queues: dict[str, asyncio.Queue[tuple[str, Incident]]] = {
            name: asyncio.Queue(QUEUE_MAX) for name in channels
        }
        self._under_way: set[tuple[str, str]] = set()
        self._counted = metrics.counter("alert_notices_total", "Notices by channel and outcome", ("channel", "outcome"))
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="notify")

    def tell(self, incident: Incident) -> None:
        """Queue what is due of an incident; never waits."""
        for notice in untold(incident):
            channel = notice.rpartition(":")[0]
            mark = (incident.id, notice)
            if channel not in self._queues or mark in self._under_way:
                continue
            try:
                self._queues[channel].put_nowait((notice, incident))
                self._under_way.add(mark)
            except asyncio.QueueFull:
                self._counted.labels(channel, "delayed").inc()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self._channels:
                    tasks.create_task(self._work(name))
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def drained(self, timeout_s: float) -> None:
        """Until everything queued has been dealt with. TimeoutError."""
        async with asyncio.timeout(timeout_s):
            for queue in self._queues.values():
                await queue.join()

    async def _work(self, name: str) -> None:
        queue = self._queues[name]
        while True:
            notice, incident = await queue.get()  # an idle channel waits for news, however long
            try:
                outcome = await self._send(name, notice.rpartition(":")[2], incident)
                self._counted.labels(name, outcome.partition(":")[0]).inc()
                await self._told(incident.id, notice, outcome)
            finally:
                self._under_way.discard((incident.id, notice))
                queue.task_done()

    async def _send(self, name: str, step: str, incident: Incident) -> str:
        at = incident.resolved if step == "resolved" else incident.opened
        if self._clock.now() - at > AGE_MAX_S * TICKS_PER_S:
            return "skipped: too old"
        notice = notice_of(incident, step)
        loop = asyncio.get_running_loop()

        async def attempt() -> None:
            try:
                sending = loop.run_in_executor(self._threads, self._channels[name].send, notice)
                await asyncio.wait_for(sending, SEND_TIMEOUT_S)
            except TimeoutError as exc:
                raise Unavailable(f"channel {name!r} took longer than {SEND_TIMEOUT_S:g} s") from exc

        try:
            await retry(attempt, clock=self._clock, rng=self._rng, tries_max=TRIES_MAX, delay_s=0.5, delay_max_s=10.0)
        except Unavailable as exc:
            log.error("notice.failed", channel=name, incident=incident.id, step=step, reason=exc.message)
            return f"failed: {exc.message}"
        except Exception as exc:  # a channel is somebody's plugin; its bug must not silence the others
            log.error("notice.failed", channel=name, incident=incident.id, step=step, reason=type(exc).__name__)
            return f"failed: {type(exc).__name__}"
        return "sent"


def notice_of(incident: Incident, step: str) -> Notice:
    """What people read."""
    title = incident.title if step == "open" else f"Resolved: {incident.title}"
    lines = [
        f"{incident.severity} · {incident.rule} · {incident.key}",
        f"opened {to_iso(incident.opened)}, {incident.events} event{'s' * (incident.events != 1)}",
    ]
    if step == "resolved":
        lines.append(f"resolved {to_iso(incident.resolved)}")
    lines += [f"{name}: {value}" for name, value in list(incident.fields.items())[:_FIELDS_SHOWN]]
    lines.append(f"incident {incident.id}")
    return Notice(incident.id, incident.rule, incident.key, incident.severity, step, title, "\n".join(lines))
