"""Which streams devices may send to: `telemetry`, and those whose settings say `devices = true`.

A message asks for a stream with the application property `stream`. What asks for another one is set aside and acknowledged:
sent again it would be refused again, so a device that insisted would be stuck behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from headrace.core.errors import UserError, nearest

STREAM = "telemetry"
SET_ASIDE = "set_aside"
PLATFORM_STREAMS = frozenset({SET_ASIDE, "alerts"})
"""What the platform itself writes; devices never do."""
HUB_STREAMS = frozenset({"twin_changes", "device_lifecycle", "device_connection"})
"""What the hub tells of its devices; devices never write it, and it is made when somebody routes to it."""
NOT_ALLOWED = "stream_not_allowed"


class DeviceStreams:
    """Raises UserError when `open_to_devices` has a stream of the platform's own."""

    def __init__(self, open_to_devices: Iterable[str] = ()) -> None:
        self.names: Collection[str] = frozenset({STREAM, *open_to_devices})
        for name in sorted((PLATFORM_STREAMS | HUB_STREAMS).intersection(self.names)):
            raise UserError(
                f"devices cannot send to {name!r}: Headrace writes it",
                hint=f"leave `devices = true` out of [streams.{name}]",
                code="gateway.stream",
            )

    def problem(self, stream: str) -> str:
        """Why a message for `stream` (empty: the usual one) is not taken; empty when it is."""
        if not stream or stream in self.names:
            return ""
        close = nearest(stream, self.names)
        return f"devices may not send to stream {stream[:80]!r}" + (f": {close}" if close else "")

    def hint(self, stream: str) -> str:
        return f"set `devices = true` in [streams.{stream[:80]}] of headrace.toml"
