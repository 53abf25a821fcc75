"""Everything apprise can reach: webhooks (`json://host/path`), mail, chat, phones. One URL a channel."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from headrace.alerts.channel import Channel, ChannelKind, Notice
from headrace.core.config import Secret
from headrace.core.errors import Unavailable, UserError


class NotifyChannel:
    """An apprise destination. The URL holds secrets, so neither errors nor logs show it."""

    def __init__(self, name: str, target: Any) -> None:
        self._name, self._target = name, target

    def send(self, notice: Notice) -> None:
        kind = (
            "success"
            if notice.step == "resolved"
            else {"critical": "failure", "info": "info"}.get(notice.severity, "warning")
        )
        try:
            taken = self._target.notify(title=notice.title, body=notice.text, notify_type=kind)
        except Exception as exc:  # whatever a plugin of apprise raises, the answer is the same: later
            raise Unavailable(f"channel {self._name!r}: {type(exc).__name__}", code="alerts.channel_failed") from exc
        if not taken:
            raise Unavailable(
                f"channel {self._name!r} did not take the message",
                hint="is its address right, and does it answer?",
                code="alerts.channel_failed",
            )


def _build(name: str, url: Secret) -> Channel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs addresses
        target = apprise.Apprise()
        known = target.add(url.reveal())
    if not known:
        scheme = url.reveal().partition("://")[0] if "://" in url.reveal() else ""
        raise UserError(
            f"channel {name!r}: apprise knows no address of the form {scheme or '?'}://",
            hint="a webhook is json://host:port/path; see https://appriseit.com/services",
            code="alerts.channel_url",
        )
    return NotifyChannel(name, target)


NOTIFY = ChannelKind("notify", "webhooks, mail, chat and more through apprise", (), _build)
