import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from headrace.core.clock import ManualClock, SystemClock
from headrace.core.errors import Unavailable
from headrace.devices.authority import DevelopmentAuthority

DAY_S = 86_400


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """A TLS handshake in memory; returns the version agreed on. Raises ssl.SSLError when it fails."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(to_server, to_client, server_side=True)
    asked = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = {served, asked}
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.discard(end)
            except ssl.SSLWantReadError:
                continue
    return asked.version() or ""


def names(folder: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "plant.example", "10.0.0.7"])
def test_a_client_with_the_ca_trusts_the_server_by_every_name(folder: Path, name: str) -> None:
    authority = DevelopmentAuthority(folder, SystemClock())
    server = authority.server_context(["Plant.example", "10.0.0.7", "0.0.0.0"])
    assert shake_hands(server, authority.client_context(), name) == "TLSv1.3"


def test_other_names_and_other_authorities_are_not_trusted(folder: Path, tmp_path: Path) -> None:
    authority = DevelopmentAuthority(folder, SystemClock())
    server = authority.server_context()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, authority.client_context(), "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, DevelopmentAuthority(tmp_path / "other", SystemClock()).client_context(), "localhost")


def test_old_tls_is_refused(folder: Path) -> None:
    authority = DevelopmentAuthority(folder, SystemClock())
    assert authority.server_context().minimum_version == ssl.TLSVersion.TLSv1_2
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake_hands(authority.server_context(), client, "localhost") == "TLSv1.2"


def test_only_the_owner_can_read_the_keys(folder: Path) -> None:
    DevelopmentAuthority(folder, SystemClock()).server_context()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key.pem")}
    assert modes == {"ca.key.pem": 0o600, "server.key.pem": 0o600}


def test_certificates_are_kept(folder: Path) -> None:
    first = DevelopmentAuthority(folder, SystemClock())
    first.server_context(["plant.example"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = DevelopmentAuthority(folder, SystemClock())
    again.server_context(["localhost"])
    assert again.ca_path == folder / "ca.pem"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_new_name_renews_the_server_certificate_and_keeps_the_old_names(folder: Path) -> None:
    authority = DevelopmentAuthority(folder, ManualClock())
    authority.server_context(["one.example"])
    ca = authority.ca_path.read_bytes()
    authority.server_context(["two.example"])
    assert names(folder) == {"localhost", "127.0.0.1", "::1", "one.example", "two.example"}
    assert authority.ca_path.read_bytes() == ca


def test_a_certificate_near_its_end_is_renewed(folder: Path) -> None:
    clock = ManualClock()
    authority = DevelopmentAuthority(folder, clock)
    authority.server_context()
    first, ca = (folder / "server.pem").read_bytes(), authority.ca_path.read_bytes()
    clock.advance(300 * DAY_S)
    authority.server_context()
    assert (folder / "server.pem").read_bytes() == first
    clock.advance(50 * DAY_S)
    authority.server_context()
    assert (folder / "server.pem").read_bytes() != first
    assert authority.ca_path.read_bytes() == ca
    clock.advance(3300 * DAY_S)
    assert authority.ca_path.read_bytes() != ca


def test_a_damaged_file_is_replaced(folder: Path) -> None:
    authority = DevelopmentAuthority(folder, SystemClock())
    authority.server_context()
    (folder / "server.pem").write_text("nonsense")
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert shake_hands(authority.server_context(), authority.client_context(), "localhost")


def test_many_that_start_together_make_one_authority(folder: Path) -> None:
    found: list[bytes] = []

    def start() -> None:
        authority = DevelopmentAuthority(folder, SystemClock())
        authority.server_context()
        found.append(authority.ca_path.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="certificates"):
        _ = DevelopmentAuthority(tmp_path / "file" / "keys", SystemClock()).ca_path
