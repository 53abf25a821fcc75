"""Shared access signatures: which tokens open what."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.errors import UserError
from headrace.wire.iothub import sas

KEY = base64.b64encode(b"k" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()
HOSTS = {"myhub.example"}
NOW = 1_800_000_000


def refused(text: str, *, path: str = "devices/a", keys: tuple[str, ...] = (KEY,), now: float = NOW) -> str:
    with pytest.raises(sas.TokenRefused) as caught:
        sas.verify(sas.parse(text), keys=keys, hosts=HOSTS, path=path, now_s=now)
    return caught.value.reason


def accepted(text: str, *, path: str = "devices/a", keys: tuple[str, ...] = (KEY,), leeway_s: float = 0) -> None:
    sas.verify(sas.parse(text), keys=keys, hosts=HOSTS, path=path, now_s=NOW, leeway_s=leeway_s)


def made(resource: str = "myhub.example/devices/a", key: str = KEY, expires_s: int = NOW + 3600) -> str:
    return sas.build(resource, key, expires_s=expires_s)


def test_a_token_of_the_primary_or_secondary_key_opens() -> None:
    accepted(made())
    accepted(made(), keys=(OTHER, KEY))
    assert refused(made(key=OTHER)) == "token_signature"


def test_the_signature_is_the_published_formula() -> None:
    expected = base64.b64encode(hmac.digest(b"k" * 32, b"h%2fdevices%2Fa\n12", hashlib.sha256))
    assert base64.b64encode(sas.sign(KEY, "h%2fdevices%2Fa", "12")) == expected


@pytest.mark.parametrize(
    "resource", ["myhub.example%2fdevices%2Fa", "myhub.example/devices/a", "MyHub.Example:8883%2Fdevices%2Fa"]
)
def test_the_resource_is_signed_as_it_stands(resource: str) -> None:
    signature = quote_plus(base64.b64encode(sas.sign(KEY, resource, str(NOW + 1))))
    accepted(f"SharedAccessSignature sr={resource}&sig={signature}&se={NOW + 1}")
    accepted(f"SharedAccessSignature se={NOW + 1}&sig={signature}&sr={resource}")


def test_a_token_opens_by_segment() -> None:
    accepted(made(), path="devices/a/messages/events")
    accepted(made("myhub.example/devices"))
    assert refused(made(), path="devices/ab") == "token_resource"
    assert refused(made(), path="devices/A") == "token_resource"
    assert refused(made("otherhub/devices/a")) == "token_resource"


def test_an_expired_token_is_refused_beyond_the_leeway() -> None:
    accepted(made(expires_s=NOW - 100), leeway_s=300)
    assert refused(made(expires_s=NOW - 100)) == "token_expired"


def test_changing_the_expiry_breaks_the_signature() -> None:
    assert refused(made().replace(f"se={NOW + 3600}", f"se={NOW + 7200}")) == "token_signature"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bearer x",
        "SharedAccessSignature ",
        "SharedAccessSignature sr=a&sig=eA==",
        "SharedAccessSignature sr=a&sig=eA==&se=soon",
        "SharedAccessSignature sr=a&sig=eA==&se=-5",
        "SharedAccessSignature sr=a&sig=*&se=5",
        "SharedAccessSignature sr=a&sr=b&sig=eA==&se=5",
        "SharedAccessSignature sr=a&sig=eA==&se=5&skn",
        "SharedAccessSignature sr=a&sig=eA==&se=" + "9" * 5000,
    ],
)
def test_a_malformed_token_is_a_refusal(text: str) -> None:
    with pytest.raises(sas.TokenRefused) as caught:
        sas.parse(text)
    assert caught.value.reason == "token_malformed"


def test_a_policy_name_is_read() -> None:
    token = sas.parse(sas.build("h", KEY, expires_s=5, policy="registry read"))
    assert (token.resource, token.policy, token.expires_s) == ("h", "registry read", 5)


def test_a_key_that_is_not_base64_is_a_user_error() -> None:
    with pytest.raises(UserError):
        sas.build("h", "not base64!", expires_s=5)


@given(st.text(max_size=60), st.text(max_size=40), st.text(max_size=20))
def test_noise_is_refused_and_never_crashes(resource: str, signature: str, expiry: str) -> None:
    for text in (
        resource,
        f"SharedAccessSignature {resource}",
        f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}",
    ):
        with pytest.raises(sas.TokenRefused):
            sas.verify(sas.parse(text), keys=[KEY], hosts=HOSTS, path="devices/a", now_s=NOW)


@given(
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.integers(NOW + 1, NOW * 2),
)
def test_every_built_token_opens_its_own_resource(device: str, expires_s: int) -> None:
    accepted(made(f"myhub.example/devices/{device}", expires_s=expires_s), path=f"devices/{device}")


@pytest.mark.parametrize(("text", "name"), [("Hub:8883", "hub"), ("HUB", "hub"), ("[::1]:8883", "::1"), ("::1", "::1")])
def test_hosts_lose_case_and_port(text: str, name: str) -> None:
    assert sas.host_name(text) == name
