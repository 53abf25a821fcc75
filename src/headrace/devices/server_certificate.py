"""The operator's own server certificate: two PEM files that somebody else renews.

They are read again whenever the gateway asks, so a renewed certificate is shown without a restart.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from headrace.core.clock import Clock, to_datetime
from headrace.core.errors import UserError

EXPIRES_SOON_DAYS = 14
SECTION = "[gateway] certificate"

log = structlog.get_logger()


class ServerCertificate:
    """`chain` holds the server's certificate first and those that lead to its authority behind it; `key` has no password."""

    def __init__(self, chain: Path, key: Path, clock: Clock) -> None:
        self._chain = chain
        self._key = key
        self._clock = clock

    def server_pair(self, hostnames: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """Chain and key, both PEM. Raises UserError for files that cannot be used; logs names that are missing and an expiry
        that is near."""
        chain, key = self._read(self._chain, "certificate"), self._read(self._key, "certificate_key")
        try:
            own = x509.load_pem_x509_certificates(chain)[0]
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError) as exc:
            raise UserError(
                f"{SECTION}: {self._chain} and {self._key} are not a PEM certificate and a PEM key without password",
                hint="openssl x509 -in FILE and openssl pkey -in FILE show what they are",
                code="certificate.unreadable",
            ) from exc
        if own.public_key() != private.public_key():
            raise UserError(
                f"{SECTION}: the key in {self._key} is not that of {self._chain}",
                hint="the server's own certificate must come first in the chain",
                code="certificate.key",
            )
        self._look(own, hostnames)
        return chain, key

    def client_context(self) -> ssl.SSLContext:
        """A context for our own clients: what the system trusts, and this very certificate with what stands behind it."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=str(self._chain))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def _look(self, own: x509.Certificate, hostnames: Iterable[str]) -> None:
        left = own.not_valid_after_utc - to_datetime(self._clock.now())
        if left.days < 0:
            raise UserError(
                f"{SECTION}: {self._chain} expired on {own.not_valid_after_utc:%Y-%m-%d}",
                hint="renew it",
                code="certificate.expired",
            )
        if left.days < EXPIRES_SOON_DAYS:
            log.warning("certificate.expires_soon", file=str(self._chain), days=left.days)
        missing = sorted(name for name in hostnames if not _names(own, name))
        if missing:
            log.warning("certificate.names_missing", file=str(self._chain), missing=missing)

    def _read(self, path: Path, setting: str) -> bytes:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise UserError(
                f"[gateway] {setting}: {path} cannot be read: {exc.strerror}",
                hint="paths are relative to the project",
                code="certificate.unreadable",
            ) from exc


def _names(certificate: x509.Certificate, hostname: str) -> bool:
    """Whether a certificate is for a name, by its alternative names; a wildcard stands for one label."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    name = hostname.lower()
    addresses = {str(address) for address in alternatives.get_values_for_type(x509.IPAddress)}
    known = {text.lower() for text in alternatives.get_values_for_type(x509.DNSName)}
    return name in addresses | known or f"*.{name.partition('.')[2]}" in known
