"""What client certificates are worth, on documents in memory."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from pki import Holder, issue

from headrace.core.clock import SystemClock
from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.certificates import (
    AuthorityCommands,
    AuthorityQueries,
    CertificateRefused,
    ClientCertificate,
    TrustedAuthorities,
    has_thumbprint,
    thumbprints,
)
from headrace.docstore.memory import MemoryDocStore

ROOT = issue("root", ca=True)
MIDDLE = issue("middle", ROOT, ca=True)


class Registry:
    def __init__(self) -> None:
        self.clock = SystemClock()
        self.docs = MemoryDocStore(self.clock)
        self.commands = AuthorityCommands(self.docs, self.clock, random.Random(1).randbytes)
        self.queries = AuthorityQueries(self.docs)
        self.trusted = TrustedAuthorities(self.docs, self.clock)

    async def check(self, holder: Holder, name: str = "dev", *, chain: bool = True) -> float:
        await self.trusted.refresh()
        sent = tuple(each.public_bytes(Encoding.DER) for each in holder.chain) if chain else ()
        return self.trusted.check(ClientCertificate(holder.der, sent), name=name)


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def refused(registry: Registry, holder: Holder, **how: object) -> str:
    with pytest.raises(CertificateRefused) as caught:
        await registry.check(holder, **how)  # type: ignore[arg-type]
    return caught.value.reason


def test_thumbprints_are_the_digests_of_the_der_in_upper_case() -> None:
    assert thumbprints(ROOT.der) == (ROOT.sha1.upper(), ROOT.sha256.upper())


@pytest.mark.parametrize("known", [ROOT.sha1, ROOT.sha1.upper(), ROOT.sha256, ":".join(ROOT.sha256)])
def test_a_thumbprint_is_known_by_either_digest_in_any_case(known: str) -> None:
    assert has_thumbprint(ROOT.der, ("", known))
    assert not has_thumbprint(MIDDLE.der, ("", known))


def test_no_thumbprint_matches_nothing() -> None:
    assert not has_thumbprint(ROOT.der, ("", ""))


async def test_a_device_below_a_trusted_root_is_known_until_its_certificate_ends(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    for issuer in (ROOT, MIDDLE):
        device = issue("dev", issuer)
        assert await registry.check(device) == device.certificate.not_valid_after_utc.timestamp()


async def test_an_intermediate_authority_may_be_registered_itself(registry: Registry) -> None:
    await registry.commands.add("middle", MIDDLE.pem, trusted=True)
    await registry.check(issue("dev", MIDDLE), chain=False)
    assert await refused(registry, issue("dev", ROOT)) == "unknown_ca"


async def test_an_authority_that_nobody_has_proven_vouches_for_nobody(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem)
    assert await refused(registry, issue("dev", ROOT)) == "unknown_ca"


async def test_the_name_must_be_the_devices(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    assert await refused(registry, issue("dev2", ROOT)) == "name"
    assert await refused(registry, issue("DEV", ROOT)) == "name"


@pytest.mark.parametrize("days", [(-3.0, -1.0), (1.0, 3.0)])
async def test_dates_hold_for_the_device_and_for_what_is_between(registry: Registry, days: tuple[float, float]) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    assert await refused(registry, issue("dev", ROOT, days=days)) == "unfit"
    late = issue("late", ROOT, ca=True, days=days)
    assert await refused(registry, issue("dev", late)) == "unknown_ca"


async def test_a_certificate_made_for_servers_or_with_unknown_demands_is_refused(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    assert await refused(registry, issue("dev", ROOT, usage=ExtendedKeyUsageOID.SERVER_AUTH)) == "unfit"
    assert await refused(registry, issue("dev", ROOT, critical_unknown=True)) == "unfit"
    await registry.check(issue("dev", ROOT, usage=None))


async def test_a_device_may_not_issue_for_another(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    assert await refused(registry, issue("dev", issue("other", ROOT))) == "unknown_ca"


async def test_the_length_of_a_chain_is_the_authoritys_to_say(registry: Registry) -> None:
    root = issue("short", ca=True, path_length=0)
    await registry.commands.add("root", root.pem, trusted=True)
    await registry.check(issue("dev", root))
    assert await refused(registry, issue("dev", issue("below", root, ca=True))) == "unknown_ca"


async def test_another_key_under_the_same_name_is_another_authority(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    assert await refused(registry, issue("dev", issue("root", ca=True))) == "unknown_ca"


async def test_a_resumed_session_without_its_chain_is_known_again(registry: Registry) -> None:
    await registry.commands.add("root", ROOT.pem, trusted=True)
    device = issue("dev", MIDDLE)
    assert await refused(registry, device, chain=False) == "unknown_ca"
    await registry.check(device)
    await registry.check(device, chain=False)
    await registry.commands.delete("root")
    assert await refused(registry, device, chain=False) == "unknown_ca"


async def test_possession_is_proven_with_a_certificate_for_the_code(registry: Registry) -> None:
    added = await registry.commands.add("root", ROOT.pem)
    assert not added.verified
    for wrong in (
        issue("x", ROOT),
        issue(added.code),
        issue(added.code, MIDDLE),
        issue(added.code, ROOT, days=(-3, -1)),
    ):
        with pytest.raises(UserError, match="does not prove possession") as caught:
            await registry.commands.verify("root", wrong.pem)
        assert caught.value.code == "authority.proof"
    assert (await registry.commands.verify("root", issue(added.code, ROOT).pem)).verified
    await registry.check(issue("dev", ROOT))
    again = await registry.commands.new_code("root")
    assert (again.verified, again.code == added.code) == (False, False)


async def test_what_is_no_authority_is_not_registered(registry: Registry) -> None:
    for wrong in (issue("leaf").pem, issue("old", ca=True, days=(-3, -1)).pem, "-----BEGIN nonsense", ""):
        with pytest.raises(UserError):
            await registry.commands.add("x", wrong)
    await registry.commands.add("root", ROOT.pem)
    with pytest.raises(Conflict):
        await registry.commands.add("root", ROOT.pem)
    assert [found.subject for found in await registry.queries.list()] == ["CN=root"]
    with pytest.raises(NotFound):
        await registry.commands.delete("other")


def test_noise_is_refused_and_nothing_else(registry: Registry) -> None:
    rng = random.Random(5)
    good = issue("dev", ROOT).der
    for _ in range(300):
        noise = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        with pytest.raises(CertificateRefused):
            registry.trusted.check(
                ClientCertificate(bytes(noise[: rng.randint(1, len(noise))]), (bytes(noise),)), name="dev"
            )
