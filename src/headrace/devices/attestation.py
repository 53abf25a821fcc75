"""Which enrolment lets a device in: what it shows is held against the enrolments in their order.

Its own enrolment goes before every group. Among groups with keys the one whose derived key signed the token counts, among
groups with certificates the one closest above the device's. The first hit decides: a disabled one refuses, and nothing behind
it is asked.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from headrace.core.clock import TICKS_PER_S, Clock
from headrace.core.errors import UserError
from headrace.devices.certificates import (
    CertificateRefused,
    ClientCertificate,
    TrustedAuthorities,
    common_name,
    has_thumbprint,
    load,
    thumbprints,
)
from headrace.devices.enrolments import GROUPS_MAX, Enrolled, EnrolmentQueries
from headrace.wire.iothub import sas
from headrace.wire.iothub.provisioning import RegistrationName, check_registration_id, derive_key, fold, verify_token

NO_KEY = base64.b64encode(bytes(32)).decode()
"""What a token is held against where there is no key, so that an unknown device takes as long as a wrong key."""

Reason = Literal["id", "scope", "token", "certificate", "not_enrolled", "disabled"]


class AttestationRefused(UserError):
    """A device that may not register. `reason` is stable."""

    def __init__(self, reason: Reason, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint, code=f"attestation.{reason}")
        self.reason: Reason = reason


class Attested(NamedTuple):
    """A device that may register, and what the hub will know it by: keys (base64), or thumbprints of its certificate."""

    registration_id: str
    enrolled: Enrolled
    keys: tuple[str, str] | None
    thumbprint: str
    expires_s: float  # UTC seconds


class Attestor:
    """Asks the documents anew each time, so that a change of an enrolment counts at once."""

    def __init__(
        self, queries: EnrolmentQueries, authorities: TrustedAuthorities, clock: Clock, *, leeway_s: float
    ) -> None:
        self._queries = queries
        self._authorities = authorities
        self._clock = clock
        self._leeway_s = leeway_s

    async def attest(
        self, name: RegistrationName, *, scope: str, token: str | None, shown: ClientCertificate | None
    ) -> Attested:
        """Let a device in with its token, or without one (None) with the certificate it has shown; `scope` is this service's.

        Raises AttestationRefused, Unavailable.
        """
        try:
            check_registration_id(name.registration_id)
        except UserError as exc:
            raise AttestationRefused("id", exc.message, hint=exc.hint) from exc
        if name.scope.lower() != scope.lower():
            raise AttestationRefused(
                "scope", f"{name.scope[:64]!r} is not this service's ID scope", hint=f"it is {scope}"
            )
        own = await self._queries.find("individual", name.registration_id)
        if token is not None:
            found = await self._by_token(name, token, own)
        else:
            found = await self._by_certificate(name.registration_id, shown or ClientCertificate(), own)
        if not found.enrolled.enrolment.enabled:
            raise AttestationRefused("disabled", f"{found.enrolled.label} is disabled", hint="enable it first")
        return found

    async def _by_token(self, name: RegistrationName, text: str, own: Enrolled | None) -> Attested:
        try:
            token = sas.parse(text)
        except sas.TokenRefused as exc:
            raise AttestationRefused("token", exc.message, hint=exc.hint) from exc
        expires_s = token.expires_s + self._leeway_s
        if own is not None and own.enrolment.attestation.type == "symmetricKey":
            keys = own.enrolment.attestation.keys
            self._verify(token, keys, name)
            return Attested(name.registration_id, own, keys, "", expires_s)
        if own is not None:
            raise AttestationRefused("token", f"{own.label} asks for a certificate", hint="connect with it")
        groups = [group for group in await self._groups() if group.enrolment.attestation.type == "symmetricKey"]
        refused: AttestationRefused | None = None
        for group in groups:
            primary, secondary = group.enrolment.attestation.keys
            keys = derive_key(primary, name.registration_id), derive_key(secondary, name.registration_id)
            try:
                self._verify(token, keys, name)
            except AttestationRefused as exc:
                if not exc.code.endswith("signature"):
                    raise  # this group's key, and something else is wrong
                refused = exc
                continue
            return Attested(name.registration_id, group, keys, "", expires_s)
        if refused is None:
            self._verify(token, (NO_KEY, NO_KEY), name, refuse=False)
            raise _unknown(name.registration_id)
        raise refused

    def _verify(self, token: sas.Token, keys: tuple[str, str], name: RegistrationName, *, refuse: bool = True) -> None:
        now_s = self._clock.now() / TICKS_PER_S
        try:
            verify_token(token, keys=keys, name=name, now_s=now_s, leeway_s=self._leeway_s)
        except sas.TokenRefused as exc:
            if refuse:
                refused = AttestationRefused("token", exc.message, hint=exc.hint)
                refused.code = f"attestation.{exc.reason}"
                raise refused from exc

    async def _by_certificate(self, id: str, shown: ClientCertificate, own: Enrolled | None) -> Attested:
        if not shown.der:
            raise AttestationRefused("token", "neither a token nor a certificate", hint="send one of them")
        try:
            leaf_name = common_name(load(shown.der))
            if fold(leaf_name) != fold(id):
                raise AttestationRefused(
                    "certificate", "its common name is not the registration id", hint=f"issue one for {id!r}"
                )
            own_or_groups = [own] if own is not None else await self._groups()
            wanted = [found for found in own_or_groups if found.enrolment.attestation.type == "x509"]
            if not wanted:
                if own is not None:
                    raise AttestationRefused("certificate", f"{own.label} asks for a token", hint="connect with a key")
                raise _unknown(id)
            if own is not None and _is_known(shown, own):
                return Attested(id, own, None, thumbprints(shown.der)[1], float("inf"))
            return self._issued(id, leaf_name, shown, wanted)
        except CertificateRefused as exc:
            raise AttestationRefused("certificate", exc.message, hint=exc.hint) from exc

    def _issued(self, id: str, leaf_name: str, shown: ClientCertificate, wanted: Sequence[Enrolled]) -> Attested:
        """By whoever stands closest above the certificate. Raises CertificateRefused."""
        issuers = [(issuer, found) for found in wanted for issuer in self._issuers(found)]
        closest, until_s = self._authorities.issuer(shown, name=leaf_name, among=[issuer for issuer, _ in issuers])
        found = next(found for issuer, found in issuers if issuer is closest)
        return Attested(id, found, None, thumbprints(shown.der)[1], until_s)

    def _issuers(self, found: Enrolled) -> list[x509.Certificate]:
        attestation = found.enrolment.attestation
        verified = [self._authorities.get(name) for name in attestation.authorities]
        return [*(_parsed(pem) for pem in attestation.signing), *(each for each in verified if each is not None)]

    async def _groups(self) -> list[Enrolled]:
        return await self._queries.list("group", limit=GROUPS_MAX)


def _is_known(shown: ClientCertificate, own: Enrolled) -> bool:
    """Whether an enrolment knows the certificate itself."""
    attestation = own.enrolment.attestation
    known = [thumbprints(_der(pem))[1] for pem in attestation.certificates]
    return has_thumbprint(shown.der, [*known, *attestation.thumbprints])


@lru_cache(maxsize=4 * GROUPS_MAX)
def _parsed(pem: str) -> x509.Certificate:
    return load(pem.encode())


@lru_cache(maxsize=4 * GROUPS_MAX)
def _der(pem: str) -> bytes:
    return load(pem.encode()).public_bytes(Encoding.DER)


def _unknown(id: str) -> AttestationRefused:
    return AttestationRefused(
        "not_enrolled", f"{id[:128]!r} has no enrolment", hint="enrol it with `headrace enrolment create`"
    )
