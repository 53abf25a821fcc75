"""What a channel is: a file in `alerts/channels/` with a `ChannelKind` at module level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from headrace.core.config import ChannelConfig, Secret
from headrace.core.errors import UserError, nearest
from headrace.core.plugins import collect


class Notice(NamedTuple):
    """One message to people."""

    incident: str
    rule: str
    key: str
    severity: str
    step: str  # open, resolved
    title: str
    text: str


class Channel(Protocol):
    def send(self, notice: Notice) -> None:
        """Blocking. Raises Unavailable when it should be tried again."""
        ...


@dataclass(frozen=True)
class ChannelKind:
    """`schemes` are the URL schemes it serves; empty: all that no other kind does. `build` raises UserError."""

    name: str
    about: str
    schemes: tuple[str, ...]
    build: Callable[[str, Secret], Channel]


def build_channels(configs: Mapping[str, ChannelConfig]) -> tuple[dict[str, Channel], dict[str, UserError]]:
    """Channels by name, and what is wrong with those that could not be made. `log` exists without being declared."""
    kinds = collect("headrace.alerts.channels", ChannelKind)
    rest = next(kind for kind in kinds if not kind.schemes)
    made: dict[str, Channel] = {}
    wrong: dict[str, UserError] = {}
    for name, config in {"log": ChannelConfig(), **configs}.items():
        scheme = config.url.reveal().partition("://")[0].lower()
        kind = next((kind for kind in kinds if scheme in kind.schemes), rest)
        try:
            made[name] = kind.build(name, config.url)
        except UserError as exc:
            wrong[name] = exc
    return made, wrong


def unknown_channel(rule: str, channel: str, known: Iterable[str]) -> UserError:
    return UserError(
        f"alert {rule!r} names channel {channel!r}, which does not exist",
        hint=nearest(channel, known) or f"declare [channels.{channel}], or use one of: {', '.join(known)}",
        code="alerts.channel",
    )
