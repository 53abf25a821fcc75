"""Who may come in and what each may do: users, certificates, rules, templates and settings."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from broker_parts import Bench, Benches, ack, connect, publish
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.core.config import BrokerAclConfig, BrokerConfig, BrokerTemplateConfig, Secret
from headrace.core.errors import UserError
from headrace.gateway.broker.templates import Templates
from headrace.gateway.broker.users import Rights, Users, check_rules, hash_password
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.packets5 import PUBACK, PUBREC
from headrace.wire.mqtt.topics import parse_filter

HASH = Secret(hash_password("right", b"0123456789abcdef"))


def test_a_password_is_checked_against_its_hash() -> None:
    users = Users({"ann": HASH}, b"pepper of this process")
    assert not users.remembers("ann", b"right")
    assert users.verify("ann", b"right")
    assert users.remembers("ann", b"right")
    assert not users.verify("ann", b"wrong")
    assert not users.verify("bob", b"right")
    assert not users.verify("", b"")
    assert not users.remembers("ann", b"wrong")
    assert "right" not in HASH.reveal()


@pytest.mark.parametrize(
    "text", ["", "plain", "scrypt$1$2$3$x", "scrypt$16384$8$1$!!$AA==", "scrypt$1073741824$8$1$AA==$AA=="]
)
def test_a_hash_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match="ann"):
        Users({"ann": Secret(text)}, b"pepper of this process")


@pytest.mark.parametrize("version", [4, 5])
async def test_users_come_in_with_their_password_only(benches: Benches, version: int) -> None:
    bench = await benches(users={"ann": HASH}, anonymous=False)
    for _ in range(2):  # the second time the password is remembered
        client = await bench.client("c", version=version, username="ann", password="right")
        await client.quiet()
        for name, password, reasons in (
            ("ann", "wrong", (4, 0x86)),
            ("bob", "right", (4, 0x86)),
            (None, None, (5, 0x87)),
        ):
            other = await bench.raw(version)
            other.send(connect("d", version=version, username=name, password=password))
            assert (await other.expect(codec.CONNACK)).reason == reasons[version - 4]
            await other.closed()


async def test_packets_behind_a_connect_wait_for_its_password(benches: Benches) -> None:
    bench = await benches(users={"ann": HASH}, anonymous=False)
    client = await bench.raw()
    client.send(connect("c", username="ann", password="right") + publish("t", b"", qos=2, id=3) + b"\xc0\0")
    await client.expect(codec.CONNACK)
    kinds = {(await client.expect(kind)).kind for kind in (PUBREC, codec.PINGRESP)}
    assert len(kinds) == 2


async def test_nobody_takes_over_the_session_of_another_user(benches: Benches) -> None:
    bench = await benches(users={"ann": HASH, "bob": HASH}, anonymous=False)
    first = await bench.client("same", username="ann", password="right")
    other = await bench.raw()
    other.send(connect("same", username="bob", password="right"))
    assert (await other.expect(codec.CONNACK)).reason == 0x87
    await first.quiet()


RULES = (
    BrokerAclConfig(user="*", publish=("all/#",), subscribe=("#",), deny_subscribe=("secret/#", "test/nosubscribe")),
    BrokerAclConfig(user="ann", publish=("own/%u/#", "by/%c"), deny_publish=("all/closed",)),
    BrokerAclConfig(user="bob*", subscribe=("$SYS/#",)),
)


def test_rules_name_what_is_allowed_and_a_deny_goes_first() -> None:
    ann = Rights(RULES, "ann", "c1")
    for topic, allowed in (("all/x", 1), ("all/closed", 0), ("own/ann/x", 1), ("own/bob/x", 0), ("by/c1", 1), ("x", 0)):
        assert ann.may_publish(topic.encode()) == bool(allowed), topic
    for wanted, allowed in (
        ("a/#", 1),
        ("#", 1),
        ("secret/#", 0),
        ("secret/+", 0),
        ("test/nosubscribe", 0),
        ("$SYS/#", 0),
    ):
        assert ann.may_subscribe(parse_filter(wanted.encode()).levels) == bool(allowed), wanted
    assert not ann.may_receive(b"secret/x")
    assert Rights(RULES, "bobby", "c").may_subscribe((b"$SYS", b"#"))
    assert Rights((), "", "").may_publish(b"anything")


@pytest.mark.parametrize("name", ["+", "#", "a/b", ""])
def test_a_name_with_wildcards_or_levels_fills_no_rule(name: str) -> None:
    rules = (BrokerAclConfig(publish=("own/%u",), subscribe=("own/%u",)),)
    rights = Rights(rules, name, "c")
    assert not rights.may_publish(b"own/x")
    assert not rights.may_publish(f"own/{name}".encode())
    assert not rights.may_subscribe((b"own", b"x"))


def test_a_rule_that_is_no_filter_is_named() -> None:
    with pytest.raises(UserError, match="a#"):
        check_rules([BrokerAclConfig(publish=("a#",))])


@pytest.mark.parametrize(("version", "refused"), [(4, 0x80), (5, 0x87)])
async def test_a_forbidden_subscription_is_refused_and_a_wider_one_leaves_it_out(
    benches: Benches, version: int, refused: int
) -> None:
    bench = await benches(acl=RULES)
    reader = await bench.client("reader", version=version)
    assert await reader.subscribe(("test/nosubscribe", 1), ("all/#", 1), ("#", 0)) == [refused, 1, 0]
    bench.broker.hall.publish(bench.message("secret/x", b"hidden"))
    bench.broker.hall.publish(bench.message("open/x", b"seen"))
    assert (await reader.expect(codec.PUBLISH)).payload == b"seen"
    await reader.quiet()


async def test_a_forbidden_publish_is_told_or_ends_the_connection(benches: Benches) -> None:
    bench = await benches(acl=RULES)
    client = await bench.client()
    client.send(publish("forbidden", b"", qos=1, id=1) + publish("forbidden", b"", qos=2, id=2))
    assert (await client.expect(PUBACK)).reason == 0x87
    assert (await client.expect(PUBREC)).reason == 0x87
    client.send(publish("forbidden", b""))
    assert (await client.expect(codec.DISCONNECT)).reason == 0x87
    old = await bench.client("old", version=4)
    old.send(publish("forbidden", b"", qos=1, id=1, version=4))
    await old.closed()
    will = await bench.raw()
    will.send(connect("w", will=("forbidden", b"", 0, False)))
    assert (await will.expect(codec.CONNACK)).reason == 0x87


def _certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None, folder: Path
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made, key


async def test_a_certificates_common_name_is_the_user(tmp_path: Path) -> None:
    authority = _certificate("authority", None, tmp_path)
    for name in ("server", "ann"):
        _certificate(name, authority, tmp_path)
    bench = Bench(
        tmp_path, port=-1, tls_port=0, tls_certificate="server.pem", tls_key="server.key", tls_client_ca="authority.pem",
        anonymous=False, acl=(BrokerAclConfig(user="ann", publish=("own/%u",), subscribe=("#",)),),
    )  # fmt: skip
    await bench.start()
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))
        context.check_hostname = False
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.broker.tls_port, ssl=context)
        writer.write(connect("c"))
        assert await reader.readexactly(4) == b"\x20\x03\x00\x87"
        writer.close()
        context.load_cert_chain(tmp_path / "ann.pem", tmp_path / "ann.key")
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.broker.tls_port, ssl=context)
        writer.write(connect("c", version=4) + publish("own/ann", b"", qos=1, id=1, version=4))
        assert await reader.readexactly(8) == b"\x20\x02\0\0\x40\x02\0\1"
        writer.close()
    finally:
        await bench.stop()


def test_a_topic_is_taken_apart_by_the_first_template_that_fits() -> None:
    templates = Templates(
        [
            BrokerTemplateConfig(filter="plant/{site}/{device}/{stream}", stream="{stream}", site="{site}"),
            BrokerTemplateConfig(
                filter="{area}/{line}/+/#", device="{area}-{line}", properties={"kind": "line {line}"}
            ),
        ]
    )
    first = templates.target(b"plant/north/m1/telemetry")
    assert first is not None
    assert (first.device, first.stream, first.site, first.properties, first.dynamic) == (
        "m1",
        "telemetry",
        "north",
        {},
        True,
    )
    second = templates.target(b"hall/7/x")
    assert second is not None
    assert (second.device, second.stream, second.site) == ("hall-7", "telemetry", None)
    assert second.properties == {"kind": "line 7"}
    assert templates.target(b"plant") is None
    assert templates.target("plant/n/é/s".encode()) is not None
    assert templates.target(b"plant/n//s") is not None  # by the second: the first has no device
    assert templates.target(b"$SYS/a/b/c") is None


@pytest.mark.parametrize(
    "config",
    [
        BrokerTemplateConfig(filter="a/{device}/{device}"),
        BrokerTemplateConfig(filter="a/b"),
        BrokerTemplateConfig(filter="a/x{device}"),
        BrokerTemplateConfig(filter="{device}/#/b"),
        BrokerTemplateConfig(filter="a/{device}", stream="alerts"),
        BrokerTemplateConfig(filter="a/{device}", stream=""),
        BrokerTemplateConfig(filter="a/{device}", properties={"x": "{missing}"}),
    ],
)
def test_a_template_that_means_nothing_is_named(config: BrokerTemplateConfig) -> None:
    with pytest.raises(UserError, match=r"broker\.templates"):
        Templates([config])


@pytest.mark.parametrize(
    "config",
    [BrokerConfig(host="0.0.0.0"), BrokerConfig(tls_port=0), BrokerConfig(users={"a": Secret("x")})],
)
def test_unsafe_settings_are_refused(tmp_path: Path, config: BrokerConfig) -> None:
    bench = Bench(tmp_path)
    bench.config = config
    with pytest.raises(UserError):
        bench.build()


async def test_a_port_in_use_gives_way_to_a_free_one(benches: Benches) -> None:
    first = await benches()
    second = await benches(port=first.port)
    assert second.port not in (first.port, 0, -1)
    client = await second.client()
    client.send(ack(PUBACK, 1))
    await client.quiet()


async def test_more_connections_than_allowed_are_told_so(benches: Benches) -> None:
    bench = await benches(connections_max=1)
    await bench.client("one")
    for version, reason in ((4, 3), (5, 0x97)):
        other = await bench.raw(version)
        other.send(connect("two", version=version))
        assert (await other.expect(codec.CONNACK)).reason == reason
        await other.closed()


async def test_more_subscriptions_than_allowed_are_refused(benches: Benches) -> None:
    bench = await benches(subscriptions_max=2)
    client = await bench.client()
    deep = "/".join("a" * 201)
    assert await client.subscribe(("a", 0), ("b", 0), ("c", 0), ("a", 1), (deep, 0)) == [0, 0, 0x97, 1, 0x8F]
