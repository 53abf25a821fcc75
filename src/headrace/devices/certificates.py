"""What a client certificate is worth: known by its thumbprint, or issued below a certificate authority the operator registered.

TLS has proven that the client holds the key, and nothing more. Authorities are documents of the collection
`certificate_authorities`; one counts only once somebody has shown that they hold its key, or the operator said it is trusted.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.core.clock import Clock, to_datetime
from headrace.core.errors import Conflict, NotFound, Unavailable, UserError
from headrace.devices.rules import check_id
from headrace.docstore.contract import ABSENT, DocStore

COLLECTION = "certificate_authorities"
CODE_BYTES = 24
CHAIN_MAX = 8  # certificates between a device's and a registered authority
PRESENTED_MAX = 16  # of a chain that a client sends, more are not looked at
REMEMBERED_MAX = 1000
AUTHORITIES_MAX = 1000
WAIT_S, RETRY_S = 10.0, 1.0
UNDERSTOOD = frozenset(
    {x509.BasicConstraints.oid, x509.KeyUsage.oid, x509.ExtendedKeyUsage.oid, x509.SubjectAlternativeName.oid}
)
"""Extensions that may be critical. One that is not looked at here refuses the certificate, as RFC 5280 asks."""

log = structlog.get_logger()


class ClientCertificate(NamedTuple):
    """What a client showed, DER. A proxy in front that tells only the name of what it has verified itself leaves `der` empty."""

    der: bytes = b""
    chain: tuple[bytes, ...] = ()
    verified_name: str = ""


class CertificateRefused(UserError):
    """A certificate that opens nothing. `reason` is stable."""

    def __init__(self, reason: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint, code=f"certificate.{reason}")
        self.reason = reason


class CertificateAuthority(msgspec.Struct, frozen=True, kw_only=True):
    """A registered authority. `pem` is its certificate, `code` what a proof of possession must bear as its common name."""

    name: str
    pem: str
    subject: str
    thumbprint: str  # SHA-1, hex, upper case
    not_after: int  # UTC seconds
    verified: bool
    code: str
    created: int  # ticks
    updated: int  # ticks


def thumbprints(der: bytes) -> tuple[str, str]:
    """SHA-1 and SHA-256 of a certificate, hex, upper case, as IoT Hub knows them."""
    found = []
    for algorithm in (hashes.SHA1(), hashes.SHA256()):  # SHA-1 as a name that operators type, not as a signature
        digest = hashes.Hash(algorithm)
        digest.update(der)
        found.append(digest.finalize().hex().upper())
    return found[0], found[1]


def has_thumbprint(der: bytes, known: Iterable[str]) -> bool:
    """Whether one of the known thumbprints (hex, any case, colons allowed, empty ones ignored) is this certificate's."""
    wanted = [print_.replace(":", "").strip().upper().encode() for print_ in known if print_]
    own = [print_.encode() for print_ in thumbprints(der)]
    return any(hmac.compare_digest(one, other) for one in wanted for other in own)


def load(data: bytes) -> x509.Certificate:
    """A certificate from DER or PEM. Raises CertificateRefused."""
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except ValueError as exc:
        raise CertificateRefused("malformed", "that is no X.509 certificate", hint="give it as PEM") from exc


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name; empty when there is none, or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


class AuthorityCommands:
    """Add, prove and remove authorities. `random_bytes(n)` makes verification codes."""

    def __init__(self, docs: DocStore, clock: Clock, random_bytes: Callable[[int], bytes]) -> None:
        self._docs = docs
        self._clock = clock
        self._random_bytes = random_bytes

    async def add(self, name: str, pem: str, *, trusted: bool = False) -> CertificateAuthority:
        """Register an authority; it counts at once when the operator says that it is `trusted`, else once proven by `verify`.

        Raises Conflict when there is one of that name, UserError for what is no authority's certificate or has expired.
        """
        check_id(name)
        certificate = load(pem.encode())
        if (problem := _no_authority(certificate)) or (
            problem := _not_now(certificate, to_datetime(self._clock.now()))
        ):
            raise UserError(
                problem, hint="register the certificate that issues your devices' own", code="authority.unfit"
            )
        if await self._docs.count(COLLECTION) >= AUTHORITIES_MAX:
            raise UserError(
                f"there are {AUTHORITIES_MAX} authorities", hint="delete old ones", code="authority.too_many"
            )
        now = self._clock.now()
        made = CertificateAuthority(
            name=name,
            pem=certificate.public_bytes(Encoding.PEM).decode(),
            subject=certificate.subject.rfc4514_string(),
            thumbprint=certificate.fingerprint(hashes.SHA1()).hex().upper(),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
            verified=trusted,
            code=self._random_bytes(CODE_BYTES).hex().upper(),
            created=now,
            updated=now,
        )
        try:
            await self._docs.put(COLLECTION, name, _to_body(made), if_match=ABSENT)
        except Conflict as exc:
            raise Conflict(
                f"there is already an authority {name!r}", hint="choose another name", code="authority.exists"
            ) from exc
        log.info("authority.added", authority=name, verified=trusted)
        return made

    async def new_code(self, name: str) -> CertificateAuthority:
        """Another verification code; one that was proven must be proven again."""
        return await self._change(name, verified=False, code=self._random_bytes(CODE_BYTES).hex().upper())

    async def verify(self, name: str, pem: str) -> CertificateAuthority:
        """Proof of possession: a certificate that bears the code as its common name and is signed with the authority's key.

        Raises UserError (code authority.proof) when it proves nothing, NotFound when there is no such authority.
        """
        found = await AuthorityQueries(self._docs).get(name)
        proof, authority = load(pem.encode()), load(found.pem.encode())
        if not hmac.compare_digest(common_name(proof).encode(), found.code.encode()):
            said = "its common name is not the verification code"
        elif not _signed_by(proof, authority):
            said = "it is not signed with the authority's key"
        else:
            said = _not_now(proof, to_datetime(self._clock.now()))
        if said:
            raise UserError(
                f"the certificate does not prove possession of {name!r}: {said}",
                hint=f"sign one for the common name {found.code}",
                code="authority.proof",
            )
        return await self._change(name, verified=True)

    async def delete(self, name: str) -> None:
        """Devices it vouched for are refused from now on; connections they have stay until they end. Raises NotFound."""
        if not await self._docs.delete(COLLECTION, name):
            raise _missing(name)
        log.info("authority.deleted", authority=name)

    async def _change(self, name: str, **fields: Any) -> CertificateAuthority:
        document = await self._docs.get(COLLECTION, name)
        if document is None:
            raise _missing(name)
        changed = msgspec.structs.replace(_from_body(name, document.body), updated=self._clock.now(), **fields)
        await self._docs.put(COLLECTION, name, _to_body(changed), if_match=document.etag)
        log.info("authority.changed", authority=name, verified=changed.verified)
        return changed


class AuthorityQueries:
    """Reads straight from the documents."""

    def __init__(self, docs: DocStore) -> None:
        self._docs = docs

    async def get(self, name: str) -> CertificateAuthority:
        """Raises NotFound."""
        found = await self._docs.get(COLLECTION, name)
        if found is None:
            raise _missing(name)
        return _from_body(name, found.body)

    async def list(self) -> Sequence[CertificateAuthority]:
        """All of them, by name; there are few."""
        found = await self._docs.query(COLLECTION, limit=AUTHORITIES_MAX)
        return [_from_body(document.id, document.body) for document in found]


class TrustedAuthorities:
    """The authorities that count, in memory, as fresh as the documents: what a gateway asks on each connect.

    A resumed TLS session brings a device's certificate but not the chain it once came with, so intermediate certificates that
    led to an authority are remembered. They are checked like any other each time.
    """

    def __init__(self, docs: DocStore, clock: Clock) -> None:
        self._docs = docs
        self._queries = AuthorityQueries(docs)
        self._clock = clock
        self._since = 0
        self._anchors: dict[str, x509.Certificate] = {}
        self._seen: OrderedDict[bytes, x509.Certificate] = OrderedDict()

    async def run(self) -> None:
        """Follow the documents until cancelled; while they are unavailable, try again every RETRY_S."""
        while True:
            try:
                changes = await self._docs.changes(COLLECTION, self._since, wait_s=WAIT_S)
                if changes:
                    await self.refresh()
                    self._since = changes[-1].sequence
            except Unavailable as exc:
                log.warning("authorities.interrupted", code=exc.code, error=exc.message)
                await self._clock.sleep(RETRY_S)

    async def refresh(self) -> None:
        """Read all of them again. Raises Unavailable."""
        anchors: dict[str, x509.Certificate] = {}
        for authority in await self._queries.list():
            if authority.verified:
                try:
                    anchors[authority.name] = load(authority.pem.encode())
                except CertificateRefused:  # written by hand: it must not lock the others out
                    log.exception("authority.unreadable", authority=authority.name)
        self._anchors = anchors

    def check(self, shown: ClientCertificate, *, name: str) -> float:
        """Until when (UTC seconds) the certificate stands for `name`, its common name. Raises CertificateRefused."""
        return self._traced(shown, name, list(self._anchors.values()))[0].not_valid_after_utc.timestamp()

    def issuer(
        self, shown: ClientCertificate, *, name: str, among: Sequence[x509.Certificate]
    ) -> tuple[x509.Certificate, float]:
        """Which of other authorities, `among`, stands closest above the certificate of `name`, and until when the certificate
        is good. Raises CertificateRefused."""
        leaf, issuer = self._traced(shown, name, among)
        return issuer, leaf.not_valid_after_utc.timestamp()

    def get(self, name: str) -> x509.Certificate | None:
        """The certificate of a registered authority that counts."""
        return self._anchors.get(name)

    def _traced(
        self, shown: ClientCertificate, name: str, anchors: Sequence[x509.Certificate]
    ) -> tuple[x509.Certificate, x509.Certificate]:
        try:
            return self._checked(shown, name, anchors)
        except (
            ValueError,
            UnsupportedAlgorithm,
        ) as exc:  # the library reads parts of a certificate only when asked for them
            raise CertificateRefused("malformed", "its certificate cannot be read", hint="issue another") from exc

    def _checked(
        self, shown: ClientCertificate, name: str, anchors: Sequence[x509.Certificate]
    ) -> tuple[x509.Certificate, x509.Certificate]:
        """The certificate, and the anchor above it."""
        leaf = load(shown.der)
        now = to_datetime(self._clock.now())
        if common_name(leaf) != name:
            raise CertificateRefused("name", "its common name is not the device's id", hint=f"issue one for {name!r}")
        if problem := _not_now(leaf, now) or _unfit(leaf):
            raise CertificateRefused("unfit", problem, hint="give the device another certificate")
        presented = [load(der) for der in shown.chain[:PRESENTED_MAX] if der != shown.der]
        below, anchor = self._chain(leaf, presented, anchors, now)
        for each in below:
            self._seen[each.fingerprint(hashes.SHA256())] = each
            self._seen.move_to_end(each.fingerprint(hashes.SHA256()))
        while len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return leaf, anchor

    def _chain(
        self,
        leaf: x509.Certificate,
        presented: list[x509.Certificate],
        anchors: Sequence[x509.Certificate],
        now: datetime,
    ) -> tuple[list[x509.Certificate], x509.Certificate]:
        """The certificates between the leaf and the closest anchor, and that; depth first is enough where each has one issuer
        by name."""
        chain = [leaf]
        spare = [*presented, *self._seen.values()]
        while len(chain) <= CHAIN_MAX:
            intermediates = len(chain) - 1
            anchor = next((each for each in anchors if _may_issue(each, chain[-1], now, intermediates)), None)
            if anchor is not None:
                return chain[1:], anchor
            issuer = next((each for each in spare if _may_issue(each, chain[-1], now, intermediates)), None)
            if issuer is None:
                break
            spare.remove(issuer)
            chain.append(issuer)
        raise CertificateRefused(
            "unknown_ca",
            "no registered and verified authority stands behind it",
            hint="register its authority, and send the certificates between",
        )


_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


def _may_issue(issuer: x509.Certificate, subject: x509.Certificate, now: datetime, intermediates: int) -> bool:
    """Whether `issuer` has issued `subject` and might: an authority, in its time, for a chain of that length."""
    if issuer.subject != subject.issuer or _not_now(issuer, now) or _no_authority(issuer) or _unfit(issuer):
        return False
    allowed = _extension(issuer, x509.BasicConstraints)
    if allowed is not None and allowed.path_length is not None and intermediates > allowed.path_length:
        return False
    return _signed_by(subject, issuer)


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (
        InvalidSignature,
        UnsupportedAlgorithm,
        ValueError,
        TypeError,
    ):  # a wrong signature, a wrong name, a key of another kind
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _no_authority(certificate: x509.Certificate) -> str:
    """Why it may not issue others; empty when it may."""
    constraints, usage = _extension(certificate, x509.BasicConstraints), _extension(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca:
        return "it is no authority's certificate (basic constraints)"
    return "" if usage is None or usage.key_cert_sign else "its key may not sign certificates (key usage)"


def _not_now(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        return f"it is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} only"
    return (
        ""
        if now <= certificate.not_valid_after_utc
        else f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}"
    )


def _unfit(certificate: x509.Certificate) -> str:
    """Whether it is made for something else, or says what is not understood here."""
    try:
        unknown = [each.oid for each in certificate.extensions if each.critical and each.oid not in UNDERSTOOD]
    except (ValueError, x509.DuplicateExtension):
        return "its extensions cannot be read"
    if unknown:
        return f"it has a critical extension that is not known here ({unknown[0].dotted_string})"
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if usage is not None and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        usage
    ):
        return "it is not for clients (extended key usage)"
    return ""


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no authority {name!r}", hint="see the list of authorities", code="authority.not_found")


def _to_body(authority: CertificateAuthority) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(authority)
    del body["name"]
    return body


def _from_body(name: str, body: dict[str, Any]) -> CertificateAuthority:
    return msgspec.convert({**body, "name": name}, CertificateAuthority)
