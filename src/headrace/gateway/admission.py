"""Who may come in: a CONNECT or an HTTP request, its token and the device it names.

The answers to an unknown device and to a wrong key look alike from outside, so that nobody can probe for names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Unavailable, UserError
from headrace.devices.model import Device
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import BadUserName, Identity, bag_of, parse_user_name, telemetry_prefix
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect

ID_REFUSED, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORISED = 2, 3, 4, 5
STALE = frozenset({"unknown_device", "token_signature", "disabled_device"})
"""Refusals that the directory may only not have heard the news about. A wrong key is among them, so that it takes as long as
an unknown device."""
LEARN_TIMEOUT_S = 5.0
CLIENT_ID_CHARS_MAX = 257  # a device and a module of 128 each

log = structlog.get_logger()


class Directory(Protocol):
    """What the gateway asks of devices.queries.DeviceDirectory."""

    def get(self, id: str) -> Device | None: ...

    async def refresh(self) -> None: ...


class Refused(UserError):
    """Nobody comes in. `reason` is stable and counted, `connack` is the return code of MQTT."""

    code = "gateway.refused"

    def __init__(self, reason: str, message: str, *, hint: str, connack: int = NOT_AUTHORISED) -> None:
        super().__init__(message, hint=hint, code=f"gateway.{reason}")
        self.reason = reason
        self.connack = connack


class Admitted(NamedTuple):
    identity: Identity
    device: Device
    expires_s: float  # UTC seconds, leeway included


class Admission:
    """Checks identities against the directory. `hosts` are the hub's names, lower case, without port."""

    def __init__(self, hosts: Iterable[str], directory: Directory, clock: Clock, *, leeway_s: float) -> None:
        self._hosts = frozenset(hosts)
        self._directory = directory
        self._clock = clock
        self._leeway_s = leeway_s

    def connect(self, connect: Connect) -> Admitted:
        """Raises Refused, whose `connack` to answer."""
        if not connect.client_id:
            raise Refused("client_id", "an empty client id", hint="send the device id", connack=ID_REFUSED)
        try:
            named = parse_user_name(connect.username or "")
        except BadUserName as exc:
            raise Refused("user_name", exc.message, hint=exc.hint, connack=BAD_CREDENTIALS) from exc
        if named.host not in self._hosts:
            raise Refused("host", f"{named.host[:100]!r} is not this hub", hint=f"it is {sorted(self._hosts)}")
        if len(connect.client_id) > CLIENT_ID_CHARS_MAX or named.identity.client_id != connect.client_id:
            raise Refused("identity_mismatch", "client id and user name differ", hint="both name the device")
        admitted = self.token(named.identity, (connect.password or b"").decode("utf-8", "replace"))
        will = connect.will
        if will is not None:
            bag = bag_of(will.topic, telemetry_prefix(named.identity))
            if bag is None or will.qos > 1:
                raise Refused("will", "a will outside the own telemetry topic, or of QoS 2", hint="change the will")
            try:
                codec.check_topic(bag)
            except codec.MalformedPacket as exc:
                raise Refused("will", exc.message, hint="change the topic of the will") from exc
        return admitted

    async def learn(self) -> None:
        """Hear of devices made or changed a moment ago: call it, and ask again, before a refusal in STALE. Never raises."""
        try:
            await asyncio.wait_for(self._directory.refresh(), LEARN_TIMEOUT_S)
        except (TimeoutError, Unavailable) as exc:
            log.warning("directory.not_refreshed", error=str(exc) or type(exc).__name__)

    def token(self, identity: Identity, text: str) -> Admitted:
        """Check a token for an identity. Raises Refused."""
        try:
            token = sas.parse(text)
        except sas.TokenRefused as exc:
            raise Refused(exc.reason, exc.message, hint=exc.hint, connack=BAD_CREDENTIALS) from exc
        device = self._directory.get(identity.device)
        if device is None or identity.module is not None:
            kind = "device" if device is None else "module"
            raise Refused(f"unknown_{kind}", f"there is no such {kind}", hint="create it with `headrace device create`")
        if token.policy is not None:
            raise Refused("policy", "tokens of shared policies are not accepted", hint="use the device's own key")
        try:
            sas.verify(
                token,
                keys=(device.primary_key, device.secondary_key),
                hosts=self._hosts,
                path=identity.path,
                now_s=self._clock.now() / TICKS_PER_S,
                leeway_s=self._leeway_s,
            )
        except sas.TokenRefused as exc:
            raise Refused(exc.reason, exc.message, hint=exc.hint) from exc
        if device.status != "enabled":
            raise Refused("disabled_device", f"device {device.id!r} is disabled", hint="enable it first")
        return Admitted(identity, device, token.expires_s + self._leeway_s)
