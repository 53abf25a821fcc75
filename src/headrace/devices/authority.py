"""A certificate authority for development, and the server certificate that gateways show.

Made on first use and kept in one folder, keys readable by their owner only. Nobody outside this machine trusts it: clients
are given `ca.pem`. A lock file keeps processes that start together from making two authorities.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.core.clock import Clock, to_datetime
from headrace.core.errors import Unavailable

CA_DAYS = 3650
SERVER_DAYS = 365
RENEW_DAYS = 30  # renew when less than this is left
BACKDATE = timedelta(hours=1)  # for devices whose clock is a little behind
ALWAYS = ("localhost", "127.0.0.1", "::1")

log = structlog.get_logger()


class DevelopmentAuthority:
    """Certificates in `folder`: `ca.pem`, `ca.key.pem`, `server.pem`, `server.key.pem`."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = Path(folder)
        self._clock = clock

    @property
    def ca_path(self) -> Path:
        """The authority's certificate, to hand to clients; made when there is none."""
        with self._locked():
            self._authority()
        return self._folder / "ca.pem"

    def server_context(self, hostnames: Iterable[str] = ()) -> ssl.SSLContext:
        """A context for servers, TLS 1.2 at least, whose certificate names `hostnames`, localhost and the loopback addresses.

        The certificate kept is used when it names all of them, is good for RENEW_DAYS more and comes from our authority;
        else a new one is made that also keeps the names of the old. Raises Unavailable when the folder cannot be written.
        """
        with self._locked():
            self._ensure_server({*ALWAYS, *_named(hostnames)})
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self._folder / "server.pem", self._folder / "server.key.pem")
        return context

    def server_pair(self, hostnames: Iterable[str] = ()) -> tuple[bytes, bytes]:
        """The server's certificate and its key, both PEM; see `server_context`."""
        with self._locked():
            self._ensure_server({*ALWAYS, *_named(hostnames)})
            return (self._folder / "server.pem").read_bytes(), (self._folder / "server.key.pem").read_bytes()

    def client_context(self) -> ssl.SSLContext:
        """A context for clients that trusts this authority and nobody else."""
        context = ssl.create_default_context(cafile=str(self.ca_path))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._folder / "lock", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise Unavailable(
                f"certificates in {self._folder} cannot be kept: {exc}",
                hint="check the folder's owner and free disk space",
                code="authority.folder",
            ) from exc

    def _now(self) -> datetime:
        return to_datetime(self._clock.now())

    def _fresh(self, certificate: x509.Certificate) -> bool:
        return certificate.not_valid_after_utc - self._now() > timedelta(days=RENEW_DAYS)

    def _authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        kept = _load(self._folder, "ca")
        if kept is not None and self._fresh(kept[0]):
            return kept
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Headrace development CA")
        builder = self._builder(name, name, key, days=CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _save(self._folder, "ca", certificate, key)
        log.info("authority.created", folder=str(self._folder), days=CA_DAYS)
        return certificate, key

    def _ensure_server(self, names: set[str]) -> None:
        authority, authority_key = self._authority()
        kept = _load(self._folder, "server")
        if kept is not None:
            missing = names - _names_of(kept[0])
            if not missing and self._fresh(kept[0]) and _issued_by(kept[0], authority):
                return
            names = names | _names_of(kept[0])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name("headrace gateway"), authority.subject, key, days=SERVER_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())
        _save(self._folder, "server", certificate, key)
        log.info("certificate.created", names=sorted(names), days=SERVER_DAYS)

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int
    ) -> x509.CertificateBuilder:
        now = self._now()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def _named(hostnames: Iterable[str]) -> set[str]:
    """Names and addresses as they stand in a certificate; `0.0.0.0` and `::` name no host."""
    return {name.strip("[]").lower() for name in hostnames} - {"", "0.0.0.0", "::"}


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in sorted(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # a wrong signature and a wrong name are different errors of the library's; both mean no
        return False
    return True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _load(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """A certificate and its key; None when absent, unreadable, or when they do not belong together."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key.pem").read_bytes(), None)
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("certificate.damaged", folder=str(folder), name=name)
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        return None
    return certificate, key


def _save(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _replace(folder / f"{name}.key.pem", secret, mode=0o600)
    _replace(folder / f"{name}.pem", certificate.public_bytes(pem), mode=0o644)


def _replace(path: Path, data: bytes, *, mode: int) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
