"""The PROXY protocol: headers as bytes, and a hub behind a proxy that terminates TLS or does not."""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from gateway_parts import HOST, KEY, Hub, device, until
from pki import issue
from raw_device import RawDevice, hello

from headrace.core.errors import UserError
from headrace.gateway.proxy import SIGNATURE, BadHeader, Told, TrustedProxies, read_header
from headrace.wire.iothub import sas

OWN = issue("press")


def value(kind: int, data: bytes) -> bytes:
    return struct.pack("!BH", kind, len(data)) + data


def header(
    body: bytes = b"", *, command: int = 0x21, family: int = 0x11, address: str = "203.0.113.7", port: int = 4711
) -> bytes:
    if family == 0x11:
        body = bytes(map(int, address.split("."))) + bytes([10, 0, 0, 1]) + struct.pack("!HH", port, 8883) + body
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def shown(*, der: bytes = b"", name: str = "", verify: int = 0, client: int = 0x07) -> bytes:
    inner = value(0x21, b"TLSv1.3") + (value(0x22, name.encode()) if name else b"") + (value(0x28, der) if der else b"")
    return value(0x20, struct.pack("!BI", client, verify) + inner)


def token(id: str) -> bytes:
    return sas.build(f"{HOST}/devices/{id}", KEY, expires_s=2**32).encode()


# headers


def test_a_header_says_who_the_client_is_and_where_it_ends() -> None:
    data = header(value(0x04, b"padding") + shown(der=b"certificate", name="press"))
    assert read_header(data + b"more") == (Told(("203.0.113.7", 4711), True, b"certificate", "press"), len(data))


def test_a_header_over_ipv6() -> None:
    body = bytes(15) + b"\x01" + bytes(16) + struct.pack("!HH", 99, 8883)
    assert read_header(header(body, family=0x21)) == (Told(("::1", 99)), 52)


def test_a_health_check_of_the_proxy_says_nothing() -> None:
    assert read_header(header(command=0x20)) == (Told(), 28)
    assert read_header(header(b"", command=0x20, family=0)) == (Told(), 16)


@pytest.mark.parametrize("told", [{"verify": 1}, {"client": 0x01}])
def test_a_name_that_the_proxy_has_not_verified_is_nobodys(told: dict[str, int]) -> None:
    found = read_header(header(shown(name="press", **told)))
    assert found is not None
    assert found[0].verified_name == ""


def test_a_header_in_pieces_is_waited_for() -> None:
    data = header(shown(name="press"))
    assert [read_header(data[:end]) for end in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x20\x00\x04MQTT",
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 8883\r\n",
        header(command=0x22),
        header(command=0x11),
        header(b"\0" * 12, family=0x31),
        header(b"\0" * 5, family=0x21),
        header(b"\x20\xff\xff"),
        header(b"\x20"),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        read_header(data)


def test_noise_is_refused_or_read_and_nothing_else() -> None:
    rng = random.Random(13)
    good = header(shown(der=b"x" * 50, name="press"))
    for _ in range(3000):
        noise = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            noise[rng.randrange(12, len(noise))] = rng.randrange(256)
        try:
            found = read_header(bytes(noise))
        except BadHeader:
            continue
        assert found is None or found[1] <= len(noise)


def test_only_the_networks_named_are_trusted() -> None:
    trusted = TrustedProxies(["10.1.0.0/16", "fd00::/8"])
    inside = ["10.1.2.3", "::ffff:10.1.2.3", "fd00::7"]
    assert [address in trusted for address in [*inside, "10.2.0.1", "127.0.0.1", "", "fe80::1"]] == [True] * 3 + [
        False
    ] * 4
    with pytest.raises(UserError):
        TrustedProxies(["10.1.0.1/16"])


# a hub behind one


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path, proxy_protocol=True)
    bare = {"primary_key": "", "secondary_key": ""}
    hub.devices.change("press", device("press", authentication="selfSigned", primary_thumbprint=OWN.sha1, **bare))
    hub.devices.change("issued", device("issued", authentication="certificateAuthority", **bare))
    await hub.start()
    yield hub
    await hub.stop()


async def test_a_device_behind_a_terminator_has_its_own_address(behind: Hub) -> None:
    async with RawDevice(behind.ports.mqtt_port, first=header(shown(client=1))) as raw:
        assert await raw.connack("dev-0", token("dev-0")) == 0
        await raw.publish("dev-0")
        assert behind.gateway.door.by_client["dev-0"].address == "203.0.113.7"


async def test_header_and_packets_may_come_cut_anywhere(behind: Hub) -> None:
    async with RawDevice(behind.ports.mqtt_port) as raw:
        for byte in header(shown(client=1)) + hello("dev-0", token("dev-0")):
            await raw.send(bytes([byte]))
        assert await raw.read(4) == b"\x20\x02\x00\x00"


async def test_tls_may_go_through_the_balancer_untouched(behind: Hub) -> None:
    async with RawDevice(behind.ports.mqtt_port, behind.authority.client_context(), first=header()) as raw:
        assert await raw.connack("dev-0", token("dev-0")) == 0
        assert behind.gateway.door.by_client["dev-0"].address == "203.0.113.7"


@pytest.mark.parametrize(
    ("id", "told", "code"),
    [
        ("press", {"der": OWN.der}, 0),
        ("press", {"der": issue("press").der}, 5),
        ("press", {"name": "press"}, 5),
        ("press", {"der": OWN.der, "client": 0x01}, 5),
        ("issued", {"name": "issued"}, 0),
        ("issued", {"name": "issued", "verify": 1}, 5),
        ("issued", {"name": "press"}, 5),
        ("dev-0", {"name": "dev-0", "der": OWN.der}, 5),
    ],
)
async def test_the_certificate_that_the_terminator_saw_opens_what_it_would_open_here(
    behind: Hub, id: str, told: dict[str, object], code: int
) -> None:
    async with RawDevice(behind.ports.mqtt_port, first=header(shown(**told))) as raw:  # type: ignore[arg-type]
        answer = await raw.connack(id)
        assert (answer == 0) == (code == 0)


async def test_requests_come_through_a_terminator_too(behind: Hub) -> None:
    async with RawDevice(behind.ports.https_port, first=header(shown(der=OWN.der))) as raw:
        await raw.send(b"POST /devices/press/messages/events HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        assert (await raw.read(12)) == b"HTTP/1.1 204"


async def test_a_trusted_proxy_without_a_header_is_dropped(behind: Hub) -> None:
    async with RawDevice(behind.ports.mqtt_port) as raw:
        await raw.send(hello("dev-0", token("dev-0")))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await raw.read(1)


async def test_who_is_not_trusted_speaks_tls_as_ever_and_its_header_counts_for_nothing(tmp_path: Path) -> None:
    hub = Hub(tmp_path, proxy_protocol=True, proxy_trusted=("192.0.2.0/24",))
    await hub.start()
    try:
        client = await hub.client("dev-0", tls=True)
        await until(lambda: client.connected)
        with pytest.raises((ssl.SSLError, OSError)):
            async with RawDevice(hub.ports.mqtt_port, hub.authority.client_context(), first=header()):
                pass
        async with httpx.AsyncClient(verify=hub.authority.client_context()) as http:
            assert (await http.get(f"https://{HOST}:{hub.ports.https_port}/")).status_code == 404
    finally:
        await hub.stop()
