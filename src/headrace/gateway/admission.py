"""Who may come in: a CONNECT or an HTTP request, its token and the device it names.

The answers to an unknown device and to a wrong key look alike from outside, so that nobody can probe for names.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import structlog

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import Unavailable, UserError
from headrace.devices.certificates import (
    CertificateRefused,
    ClientCertificate,
    TrustedAuthorities,
    has_thumbprint,
)
from headrace.devices.model import Credentials, Device, Module
from headrace.devices.policies import Policy, Right
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import BadUserName, Identity, bag_of, parse_user_name, telemetry_prefix
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect

ID_REFUSED, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORISED = 2, 3, 4, 5
STALE = frozenset(
    {
        "unknown_device",
        "unknown_module",
        "token_signature",
        "disabled_device",
        "unknown_policy",
        "no_key",
        "needs_token",
        "thumbprint",
        "certificate_unknown_ca",
    }
)
"""Refusals that the directory may only not have heard the news about. A wrong key is among them, so that it takes as long as
an unknown device."""
LEARN_TIMEOUT_S = 5.0
SAS_METHODS = {scope: f'{{"scope":"{scope}","type":"sas","issuer":"iothub"}}' for scope in ("device", "module", "hub")}
X509_METHODS = {scope: f'{{"scope":"{scope}","type":"x509","issuer":"external"}}' for scope in ("device", "module")}
NO_KEY = base64.b64encode(bytes(32)).decode()
"""What a stranger's token is compared with, so that a name without keys takes as long as one with two."""
CLIENT_ID_CHARS_MAX = 257  # a device and a module of 128 each

log = structlog.get_logger()


class Directory(Protocol):
    """What the gateway asks of devices.queries.DeviceDirectory."""

    def get(self, id: str) -> Device | None: ...

    def module(self, device: str, id: str) -> Module | None: ...

    def policy(self, name: str) -> Policy | None: ...

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
    module: Module | None = None
    method: str = SAS_METHODS["device"]  # what IoT Hub stamps on messages as iothub-connection-auth-method

    @property
    def generation_id(self) -> str:
        return self.device.generation_id if self.module is None else self.module.generation_id


class Admission:
    """Checks identities against the directory. `hosts` are the hub's names, lower case, without port."""

    def __init__(
        self,
        hosts: Iterable[str],
        directory: Directory,
        clock: Clock,
        *,
        leeway_s: float,
        authorities: TrustedAuthorities | None = None,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._directory = directory
        self._clock = clock
        self._leeway_s = leeway_s
        self._authorities = authorities

    def connect(self, connect: Connect, shown: ClientCertificate | None = None) -> Admitted:
        """By the password's token; without a password by the certificate that the client has shown, if any. Raises Refused,
        whose `connack` to answer."""
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
        if shown is not None and not connect.password:
            admitted = self.certificate(named.identity, shown)
        else:
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
            if self._authorities is not None:
                await asyncio.wait_for(self._authorities.refresh(), LEARN_TIMEOUT_S)
        except (TimeoutError, Unavailable) as exc:
            log.warning("directory.not_refreshed", error=str(exc) or type(exc).__name__)

    def token(self, identity: Identity, text: str) -> Admitted:
        """Check a token for an identity. Raises Refused."""
        try:
            token = sas.parse(text)
        except sas.TokenRefused as exc:
            raise Refused(exc.reason, exc.message, hint=exc.hint, connack=BAD_CREDENTIALS) from exc
        device = self._directory.get(identity.device)
        named = identity.module
        module = None if device is None or named is None else self._directory.module(identity.device, named)
        subject: Credentials | None = device if identity.module is None else module
        if subject is None or device is None:
            self._verify(token, (NO_KEY, NO_KEY), identity.path, refuse=False)
            kind = "device" if device is None else "module"
            raise Refused(f"unknown_{kind}", f"there is no such {kind}", hint="create it with `headrace device create`")
        keys = [key for key in (subject.primary_key, subject.secondary_key) if key]
        if subject.authentication in ("selfSigned", "certificateAuthority") or not (keys or token.policy):
            self._verify(token, (NO_KEY, NO_KEY), identity.path, refuse=False)
            raise Refused("no_key", "this identity has no key", hint="connect with its certificate")
        if token.policy is not None:
            self._policy(token, identity.path, "DeviceConnect")
            method = SAS_METHODS["hub"]
        else:
            self._verify(token, (keys[0], keys[-1]), identity.path)
            method = SAS_METHODS["device" if module is None else "module"]
        if not device.enabled:
            raise Refused("disabled_device", f"device {device.id!r} is disabled", hint="enable it first")
        return Admitted(identity, device, token.expires_s + self._leeway_s, module, method)

    def certificate(self, identity: Identity, shown: ClientCertificate) -> Admitted:
        """Check what a client has shown for an identity. Raises Refused."""
        device = self._directory.get(identity.device)
        named = identity.module
        module = None if device is None or named is None else self._directory.module(identity.device, named)
        subject: Credentials | None = device if named is None else module
        if subject is None or device is None:
            kind = "device" if device is None else "module"
            raise Refused(f"unknown_{kind}", f"there is no such {kind}", hint="create it with `headrace device create`")
        expires_s = float("inf")
        if subject.authentication == "selfSigned":
            known = (subject.primary_thumbprint, subject.secondary_thumbprint)
            if not shown.der or not has_thumbprint(shown.der, known):
                raise Refused(
                    "thumbprint", "its certificate has neither of its thumbprints", hint="register the thumbprint"
                )
        elif subject.authentication == "certificateAuthority":
            expires_s = self._issued(identity, shown)
        else:
            raise Refused("needs_token", "this identity has a key, not a certificate", hint="connect with a token")
        if not device.enabled:
            raise Refused("disabled_device", f"device {device.id!r} is disabled", hint="enable it first")
        method = X509_METHODS["device" if module is None else "module"]
        return Admitted(identity, device, expires_s, module, method)

    def _issued(self, identity: Identity, shown: ClientCertificate) -> float:
        """Until when an authority vouches for an identity. What a trusted proxy has verified itself needs no authority here."""
        if not shown.der and shown.verified_name == identity.client_id:
            return float("inf")
        if not shown.der or self._authorities is None:
            raise Refused("certificate_name", "the certificate names somebody else", hint="its common name is the id")
        try:
            return self._authorities.check(shown, name=identity.client_id)
        except CertificateRefused as exc:
            raise Refused(f"certificate_{exc.reason}", exc.message, hint=exc.hint) from exc

    def service(self, text: str, path: str, right: Right) -> Policy:
        """Check a service's token for `path` (decoded, without the leading slash). Raises Refused; the policy must have
        `right`."""
        try:
            token = sas.parse(text)
        except sas.TokenRefused as exc:
            raise Refused(exc.reason, exc.message, hint=exc.hint) from exc
        return self._policy(token, path, right)

    def _policy(self, token: sas.Token, path: str, right: Right) -> Policy:
        policy = self._directory.policy(token.policy or "")
        if policy is None:
            self._verify(token, (NO_KEY, NO_KEY), path, refuse=False)
            raise Refused("unknown_policy", "there is no such policy", hint="`headrace hub info` shows them")
        self._verify(token, policy.keys, path)
        if right not in policy.rights:
            raise Refused("right", f"policy {policy.name!r} has no {right}", hint="use a policy that has")
        return policy

    def _verify(self, token: sas.Token, keys: tuple[str, str], path: str, *, refuse: bool = True) -> None:
        """Raises Refused, unless only the time that it takes is wanted."""
        try:
            sas.verify(
                token,
                keys=keys,
                hosts=self._hosts,
                path=path,
                now_s=self._clock.now() / TICKS_PER_S,
                leeway_s=self._leeway_s,
            )
        except sas.TokenRefused as exc:
            if refuse:
                raise Refused(exc.reason, exc.message, hint=exc.hint) from exc
