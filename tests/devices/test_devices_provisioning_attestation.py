"""Who may register: tokens and certificates against enrolments, in their order."""

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pki import NOW, Holder, issue
from provisioned import KEY, OTHER_KEY, Desk

from headrace.core.clock import from_datetime
from headrace.core.errors import Conflict, NotFound, UserError
from headrace.devices.attestation import AttestationRefused
from headrace.devices.certificates import ClientCertificate
from headrace.devices.enrolments import Attestation, Enrolment
from headrace.wire.iothub.provisioning import derive_key

ROOT = issue("factory root", ca=True)
LINE = issue("line 4", ROOT, ca=True)


@pytest.fixture
async def desk() -> Desk:
    made = Desk()
    made.clock.set(from_datetime(NOW))
    await made.open()
    return made


def show(holder: Holder) -> ClientCertificate:
    return ClientCertificate(holder.der, (holder.der, *(each.public_bytes(Encoding.DER) for each in holder.chain)))


async def refused(desk: Desk, *args: object, **more: object) -> str:
    with pytest.raises(AttestationRefused) as caught:
        await desk.attest(*args, **more)  # type: ignore[arg-type]
    return caught.value.reason


def test_a_group_key_derives_the_key_that_the_documentation_shows() -> None:
    group = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
    assert derive_key(group, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6") == "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
async def test_either_key_of_an_enrolment_opens_and_both_become_the_devices(desk: Desk, key: str) -> None:
    await desk.enrol("press-7")
    found = await desk.attest("press-7", key)
    assert (found.keys, found.enrolled.kind) == ((KEY, OTHER_KEY), "individual")


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
async def test_either_derived_key_opens_a_group_and_the_groups_own_never_does(desk: Desk, key: str) -> None:
    await desk.enrol("line", "group")
    found = await desk.attest("press-7", derive_key(key, "press-7"))
    assert found.keys == (derive_key(KEY, "press-7"), derive_key(OTHER_KEY, "press-7"))
    assert await refused(desk, "press-7", key) == "token"
    assert await refused(desk, "press-8", derive_key(key, "press-7")) == "token"


async def test_the_group_whose_key_signed_is_the_one(desk: Desk) -> None:
    await desk.enrol("a", "group", attestation=Attestation(primary_key=OTHER_KEY, secondary_key=OTHER_KEY))
    await desk.enrol("b", "group", attestation=Attestation(primary_key=KEY, secondary_key=KEY))
    assert (await desk.attest("x", derive_key(KEY, "x"))).enrolled.enrolment.id == "b"


async def test_an_enrolment_of_its_own_goes_before_every_group(desk: Desk) -> None:
    await desk.enrol("line", "group")
    await desk.enrol("press-7", attestation=Attestation(primary_key=OTHER_KEY, secondary_key=OTHER_KEY))
    assert await refused(desk, "press-7", derive_key(KEY, "press-7")) == "token"
    assert (await desk.attest("press-7", OTHER_KEY)).enrolled.kind == "individual"


async def test_a_disabled_enrolment_refuses_though_a_group_would_let_in(desk: Desk) -> None:
    await desk.enrol("line", "group")
    await desk.enrol("press-7", enabled=False)
    assert await refused(desk, "press-7") == "disabled"
    await desk.enrolments.set_enabled("individual", "press-7", True)
    await desk.attest("press-7")
    await desk.enrolments.set_enabled("group", "line", False)
    assert await refused(desk, "press-8", derive_key(KEY, "press-8")) == "disabled"


async def test_a_stranger_a_late_token_and_a_token_for_another_are_refused(desk: Desk) -> None:
    assert await refused(desk, "nobody") == "not_enrolled"
    await desk.enrol("press-7")
    assert await refused(desk, "press-7", token=desk.token("press-7", ttl_s=-1)) == "token"
    assert await refused(desk, "press-7", token=desk.token("press-8")) == "token"
    assert await refused(desk, "press-7", token=desk.token("press-7", scope="0neOTHER")) == "token"
    assert await refused(desk, "press-7", token="SharedAccessSignature sr=x") == "token"
    assert await refused(desk, "press_7_") == "id"
    assert await refused(desk, "press-7", shown=ClientCertificate()) == "token"


async def test_registration_ids_are_compared_without_case(desk: Desk) -> None:
    await desk.enrol("Press-7")
    assert (await desk.attest("pRESS-7", token=desk.token("PRESS-7"))).enrolled.enrolment.id == "Press-7"
    with pytest.raises(Conflict):
        await desk.enrol("press-7")


@pytest.mark.parametrize("known", ["certificate", "sha1", "sha256"])
async def test_a_certificate_that_an_enrolment_knows_opens(desk: Desk, known: str) -> None:
    leaf = issue("press-7")
    how = {"certificates": (leaf.pem,)} if known == "certificate" else {"thumbprints": (getattr(leaf, known),)}
    await desk.enrol("press-7", attestation=Attestation(type="x509", **how))  # type: ignore[arg-type]
    found = await desk.attest("press-7", shown=show(leaf))
    assert (found.keys, found.thumbprint) == (None, leaf.sha256.upper())
    assert await refused(desk, "press-7", shown=show(issue("press-7"))) == "certificate"
    assert await refused(desk, "press-7", KEY) == "token"


async def test_the_common_name_is_the_registration_id(desk: Desk) -> None:
    leaf = issue("press-8")
    await desk.enrol("press-7", attestation=Attestation(type="x509", certificates=(leaf.pem,)))
    assert await refused(desk, "press-7", shown=show(leaf)) == "certificate"


async def test_a_group_of_an_intermediate_goes_before_that_of_the_root(desk: Desk) -> None:
    await desk.enrol("a-root", "group", attestation=Attestation(type="x509", signing=(ROOT.pem,)))
    assert (await desk.attest("press-7", shown=show(issue("press-7", LINE)))).enrolled.enrolment.id == "a-root"
    await desk.enrol("line", "group", attestation=Attestation(type="x509", signing=(LINE.pem,)))
    assert (await desk.attest("press-7", shown=show(issue("press-7", LINE)))).enrolled.enrolment.id == "line"
    assert (await desk.attest("press-8", shown=show(issue("press-8", ROOT)))).enrolled.enrolment.id == "a-root"
    await desk.enrolments.set_enabled("group", "line", False)
    assert await refused(desk, "press-7", shown=show(issue("press-7", LINE))) == "disabled"


async def test_a_registered_authority_counts_for_a_group_once_it_is_verified(desk: Desk) -> None:
    added = await desk.authorities.add("root", ROOT.pem)
    await desk.enrol("line", "group", attestation=Attestation(type="x509", authorities=("root",)))
    await desk.trusted.refresh()
    shown = show(issue("press-7", LINE))
    assert await refused(desk, "press-7", shown=shown) == "certificate"
    await desk.authorities.verify("root", issue(added.code, ROOT).pem)
    await desk.trusted.refresh()
    assert (await desk.attest("press-7", shown=shown)).enrolled.enrolment.id == "line"


async def test_a_certificate_of_a_strange_authority_or_past_its_time_is_refused(desk: Desk) -> None:
    assert await refused(desk, "press-7", shown=show(issue("press-7", LINE))) == "not_enrolled"
    await desk.enrol("line", "group", attestation=Attestation(type="x509", signing=(ROOT.pem,)))
    assert await refused(desk, "press-7", shown=show(issue("press-7", issue("other", ca=True)))) == "certificate"
    late = issue("press-7", ROOT, days=(-10, -5))
    assert await refused(desk, "press-7", shown=show(late)) == "certificate"
    assert await refused(desk, "press-7", shown=ClientCertificate(b"no certificate")) == "certificate"


async def test_keys_left_out_are_made_and_stay_when_an_enrolment_is_changed(desk: Desk) -> None:
    made = await desk.enrolments.put("group", Enrolment(id="line"))
    keys = made.enrolment.attestation.keys
    assert all(len(key) == 44 for key in keys)
    assert keys[0] != keys[1]
    changed = await desk.enrolments.put("group", Enrolment(id="line", site="north"), if_match=made.etag)
    assert changed.enrolment.attestation.keys == keys
    assert (changed.enrolment.created, changed.enrolment.site) == (made.enrolment.created, "north")
    with pytest.raises(Conflict) as caught:
        await desk.enrolments.put("group", Enrolment(id="line"), if_match=made.etag)
    assert caught.value.code == "enrolment.etag"


async def test_an_enrolment_that_makes_no_sense_is_refused(desk: Desk) -> None:
    wrong = [
        ("individual", Enrolment(id="a_")),
        ("individual", Enrolment(id="a", device_id="a b")),
        ("individual", Enrolment(id="a", allocation="static", hubs=("x", "y"))),
        ("individual", Enrolment(id="a", tags={"a.b": 1})),
        ("individual", Enrolment(id="a", attestation=Attestation(primary_key="short"))),
        ("individual", Enrolment(id="a", attestation=Attestation(type="x509"))),
        ("individual", Enrolment(id="a", attestation=Attestation(type="x509", certificates=("no",)))),
        ("group", Enrolment(id="a", device_id="x")),
        ("group", Enrolment(id="a", attestation=Attestation(type="x509", certificates=(ROOT.pem,)))),
    ]
    for kind, enrolment in wrong:
        with pytest.raises(UserError):
            await desk.enrolments.put(kind, enrolment)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await desk.enrolments.put("individual", Enrolment(id="a"), if_match="*")
    with pytest.raises(NotFound):
        await desk.enrolments.delete("individual", "a")


def test_nothing_shows_keys() -> None:
    enrolment = Enrolment(id="a", attestation=Attestation(primary_key=KEY, secondary_key=OTHER_KEY))
    assert KEY not in repr(enrolment)
    assert OTHER_KEY not in f"{enrolment} {enrolment.attestation!r}"
