"""The process log as a channel: always there, never fails. URL `log://`."""

from __future__ import annotations

import structlog

from headrace.alerts.channel import Channel, ChannelKind, Notice
from headrace.core.config import Secret

log = structlog.get_logger()


class LogChannel:
    """One line a notice, a warning when it opens. Titles may carry values of the event, as the rule's author chose."""

    def send(self, notice: Notice) -> None:
        opened = notice.step == "open"
        say = log.warning if opened and notice.severity != "info" else log.info
        say(
            "alert.opened" if opened else "alert.resolved",
            incident=notice.incident,
            rule=notice.rule,
            key=notice.key,
            severity=notice.severity,
            title=notice.title,
        )


def _build(name: str, url: Secret) -> Channel:
    return LogChannel()


LOG = ChannelKind("log", "the log of the alerts process", ("log",), _build)
