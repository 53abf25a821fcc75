"""The operator's own server certificate: read from files, and refused with the setting's name when it cannot be used."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from headrace.core.clock import ManualClock, SystemClock
from headrace.core.errors import UserError
from headrace.devices.authority import DevelopmentAuthority
from headrace.devices.server_certificate import ServerCertificate
from headrace.gateway.tls import server_context


def pair(folder: Path, name: str = "one") -> tuple[Path, Path]:
    """Certificate and key files, issued by an authority of their own."""
    certificate, key = DevelopmentAuthority(folder / name, SystemClock()).server_pair(["hub.example"])
    chain, secret = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(certificate)
    secret.write_bytes(key)
    return chain, secret


def test_its_files_make_a_server_and_are_read_again_when_they_change(tmp_path: Path) -> None:
    chain, key = pair(tmp_path)
    own = ServerCertificate(chain, key, SystemClock())
    before = own.server_pair(["hub.example"])
    server_context(*before)
    assert own.client_context().verify_mode == ssl.CERT_REQUIRED
    newer, newer_key = pair(tmp_path, "two")
    chain.write_bytes(newer.read_bytes())
    key.write_bytes(newer_key.read_bytes())
    assert own.server_pair() != before


def test_what_cannot_be_used_is_told_with_the_setting(tmp_path: Path) -> None:
    (chain, key), (_, other) = pair(tmp_path), pair(tmp_path, "two")
    clock = SystemClock()
    late = ManualClock(clock.now() + 400 * 86_400 * 10_000_000)
    for made, code in (
        (ServerCertificate(tmp_path / "none.pem", key, clock), "certificate.unreadable"),
        (ServerCertificate(key, key, clock), "certificate.unreadable"),
        (ServerCertificate(chain, other, clock), "certificate.key"),
        (ServerCertificate(chain, key, late), "certificate.expired"),
    ):
        with pytest.raises(UserError, match="certificate") as caught:
            made.server_pair()
        assert caught.value.code == code
        assert "[gateway] certificate" in caught.value.message
