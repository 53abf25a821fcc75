"""The alert service: rules from the settings, one watch a stream, and telling people.

A rule or channel with an error is reported and left out; the others run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

import msgspec
import structlog

from headrace.alerts.acknowledgements import Acknowledgements
from headrace.alerts.channel import build_channels, unknown_channel
from headrace.alerts.incidents import IncidentStore
from headrace.alerts.model import Incident, Rule, rule_of
from headrace.alerts.notifier import Notifier
from headrace.alerts.watch import ALERTS, STATES, Condition, Watch, Watched
from headrace.core.clock import Clock
from headrace.core.config import AlertConfig, ChannelConfig
from headrace.core.errors import UserError
from headrace.core.observe.metrics import Metrics
from headrace.docstore.contract import DocStore
from headrace.eventlog.contract import EventLog

log = structlog.get_logger()
SWEEP_S = 30.0  # how often incidents are searched that somebody still has to be told of


class AlertService:
    """Call `run()` in a task; cancel it to stop. One per project: it is the only writer of incidents."""

    def __init__(
        self,
        log: EventLog,
        docs: DocStore,
        clock: Clock,
        *,
        rules: Mapping[str, AlertConfig],
        channels: Mapping[str, ChannelConfig],
        metrics: Metrics,
        rng: random.Random | None = None,
        compile: Callable[[str], Condition] | None = None,
    ) -> None:
        self.store = IncidentStore(docs, clock)
        self._log, self._docs, self._clock, self._metrics = log, docs, clock, metrics
        self._lock = asyncio.Lock()
        self.acknowledgements = Acknowledgements(log, docs, self.store)
        built, wrong = build_channels(channels)
        self._refused: dict[str, UserError] = {f"channels.{name}": error for name, error in wrong.items()}
        self.notifier = Notifier(built, clock=clock, rng=rng or random.Random(0), metrics=metrics, told=self._told)
        ready = self._ready(rules, set(built), compile or _compile)
        self.watches = [self._watch(stream, watched) for stream, watched in ready.items()]
        for name, error in self._refused.items():
            structlog.get_logger().error("alert_setting.refused", setting=name, reason=str(error), code=error.code)
        metrics.gauge("alert_settings_refused", "Rules and channels left out because of an error").set(
            len(self._refused)
        )

    def problems(self) -> dict[str, str]:
        """What is wrong in the settings, by `alerts.NAME` or `channels.NAME`; empty when all is well."""
        return {name: str(error) for name, error in self._refused.items()}

    async def run(self) -> None:
        await self.close_abandoned()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.notifier.run())
            for watch in self.watches:
                tasks.create_task(watch.run())
            tasks.create_task(self._sweep())
            tasks.create_task(self.acknowledgements.run())

    async def close_abandoned(self) -> None:
        """Resolve what was open on streams that no rule reads any more."""
        watched = {watch.stream for watch in self.watches}
        for document in await self._docs.query(STATES):
            if document.id not in watched:
                await self._watch(document.id, []).restore()

    async def sweep(self) -> None:
        """Queue notices that are due: left over from before a restart, or from a full queue."""
        for incident in await self.store.waiting():
            self.notifier.tell(incident)

    async def _sweep(self) -> None:
        while True:
            await self.sweep()
            await self._clock.sleep(SWEEP_S)

    async def _told(self, id: str, notice: str, outcome: str) -> None:
        for watch in self.watches:
            watch.mark(id, notice, outcome)
        async with self._lock:
            await self.store.told(id, notice, outcome)

    def _ready(
        self, rules: Mapping[str, AlertConfig], known: set[str], compile: Callable[[str], Condition]
    ) -> dict[str, list[Watched]]:
        ready: dict[str, list[Watched]] = {}
        for name, config in rules.items():
            if not config.enabled:
                continue
            try:
                watched = Watched(self._checked(rule_of(name, config), known), compile(config.when))
            except UserError as exc:
                self._refused[f"alerts.{name}"] = exc
                continue
            ready.setdefault(config.stream, []).append(watched)
        return ready

    def _checked(self, rule: Rule, known: set[str]) -> Rule:
        """The rule with the channels there are; missing ones are reported, but the incident matters more."""
        if rule.stream == ALERTS:
            raise UserError(
                f"alert {rule.name!r} reads stream {ALERTS!r}, which alerts write themselves",
                hint="read the stream that the other rule reads",
                code="alerts.loop",
            )
        for channel in rule.channels:
            if channel not in known and f"channels.{channel}" not in self._refused:
                self._refused[f"alerts.{rule.name}.channels"] = unknown_channel(rule.name, channel, sorted(known))
        kept = tuple(channel for channel in rule.channels if channel in known)
        return msgspec.structs.replace(rule, channels=kept)

    def _watch(self, stream: str, watched: list[Watched]) -> Watch:
        return Watch(
            stream,
            watched,
            log=self._log,
            docs=self._docs,
            store=self.store,
            clock=self._clock,
            lock=self._lock,
            tell=self._tell,
            metrics=self._metrics,
        )

    def _tell(self, incident: Incident) -> None:
        self.notifier.tell(incident)


def _compile(text: str) -> Condition:
    from headrace.sql.condition import compile_condition

    made: Condition = compile_condition(text)
    return made
