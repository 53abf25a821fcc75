"""MQTT over WebSocket on the HTTPS port, with the `websockets` client as the device."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_parts import HOST, KEY, Hub, device, rows_of, until
from pki import issue
from raw_device import hello
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from headrace.gateway.websocket import PATH
from headrace.wire.iothub import sas
from headrace.wire.mqtt import codec

ACCEPTED = b"\x20\x02\x00\x00"
PUBACK = b"\x40\x02\x00\x01"


@asynccontextmanager
async def dialled(
    hub: Hub, *, path: str = PATH, tls: ssl.SSLContext | None = None, **how: Any
) -> AsyncIterator[ClientConnection]:
    options: dict[str, Any] = {"subprotocols": ["mqtt"], "open_timeout": 10, "close_timeout": 1, **how}
    url = f"wss://{HOST}:{hub.ports.https_port}{path}"
    async with connect(url, ssl=tls or hub.authority.client_context(), **options) as link:
        yield link


def token(id: str) -> bytes:
    return sas.build(f"{HOST}/devices/{id}", KEY, expires_s=2**32).encode()


def message(id: str, body: bytes = b"{}") -> bytes:
    return codec.encode_publish(f"devices/{id}/messages/events/".encode(), body, packet_id=1)


async def heard(link: ClientConnection) -> bytes:
    found = await asyncio.wait_for(link.recv(), 10)
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize("path", [PATH, "/%24iothub/websocket", PATH + "?iothub-no-client-cert=true"])
async def test_a_device_sends_over_a_websocket(hub: Hub, path: str) -> None:
    async with dialled(hub, path=path) as link:
        assert link.subprotocol == "mqtt"
        await link.send(hello("dev-0", token("dev-0")))
        assert await heard(link) == ACCEPTED
        await link.send(message("dev-0", b"over ws"))
        assert await heard(link) == PUBACK
        assert [row["_body"] for row in await rows_of(hub.log)] == [b"over ws"]
        presence = hub.gateway.door.by_client["dev-0"]
        assert presence.address == HOST


async def test_frames_may_be_cut_anywhere(hub: Hub) -> None:
    rng = random.Random(7)
    async with dialled(hub) as link:
        stream = hello("dev-0", token("dev-0")) + message("dev-0", bytes(range(256)) * 40) + b"\xc0\x00"
        cuts = sorted(rng.sample(range(1, len(stream)), 60))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        await link.send(pieces[:20])  # one message in twenty fragments
        for piece in pieces[20:]:
            await link.send(piece)
        answers = b""
        while len(answers) < len(ACCEPTED + PUBACK) + 2:
            answers += await heard(link)
        assert answers.startswith(ACCEPTED)
        assert PUBACK in answers
        assert b"\xd0\x00" in answers
    assert [row["_body"] for row in await rows_of(hub.log)] == [bytes(range(256)) * 40]


async def test_pings_are_answered(hub: Hub) -> None:
    async with dialled(hub) as link:
        pong = await link.ping(b"there?")
        await asyncio.wait_for(pong, 10)


async def test_text_is_refused_as_such(hub: Hub) -> None:
    async with dialled(hub) as link:
        await link.send("hello")
        with pytest.raises(ConnectionClosed) as caught:
            await heard(link)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1003


async def test_a_frame_above_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    hub = Hub(tmp_path, message_bytes_max=1000)
    await hub.start()
    try:
        async with dialled(hub) as link:
            header = Frame(Opcode.BINARY, b"\0" * 200_000).serialize(mask=True)[:4000]
            link.transport.write(header)
            with pytest.raises(ConnectionClosed) as caught:
                await heard(link)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
    finally:
        await hub.stop()


@pytest.mark.parametrize(
    ("how", "status"),
    [({"path": "/elsewhere"}, 404), ({"subprotocols": None}, 400), ({"subprotocols": ["amqp"]}, 400)],
)
async def test_what_is_no_mqtt_is_refused_with_a_status(hub: Hub, how: dict[str, Any], status: int) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with dialled(hub, **how):
            pass
    assert caught.value.response.status_code == status


async def test_an_ordinary_request_for_the_path_is_no_websocket(hub: Hub) -> None:
    async with httpx.AsyncClient(verify=hub.authority.client_context()) as client:
        assert (await client.get(f"https://{HOST}:{hub.ports.https_port}{PATH}")).status_code == 404


async def test_a_wrong_key_is_told_before_the_connection_closes(hub: Hub) -> None:
    async with dialled(hub) as link:
        await link.send(hello("dev-0", b"SharedAccessSignature sr=x&sig=y&se=1"))
        assert (await heard(link))[:2] == b"\x20\x02"
        with pytest.raises(ConnectionClosed) as caught:
            await heard(link)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1000


async def test_a_device_is_one_over_tcp_and_websocket(hub: Hub) -> None:
    client = await hub.client("dev-0", tls=True)
    async with dialled(hub) as link:
        await link.send(hello("dev-0", token("dev-0")))
        assert await heard(link) == ACCEPTED
        with pytest.raises(ConnectionClosed):  # the client above comes back by itself and takes over in turn
            await heard(link)
    await until(lambda: client.connected and client.reconnects > 0)


async def test_a_certificate_opens_a_websocket(hub: Hub, tmp_path: Path) -> None:
    own = issue("dev-9")
    known = device("dev-9", authentication="selfSigned", primary_thumbprint=own.sha1, primary_key="", secondary_key="")
    hub.devices.change("dev-9", known)
    async with dialled(hub, tls=own.show_in(hub.authority.client_context(), tmp_path)) as link:
        await link.send(hello("dev-9"))
        assert await heard(link) == ACCEPTED
    async with dialled(hub) as link:
        await link.send(hello("dev-9"))
        assert await heard(link) != ACCEPTED


async def test_a_client_that_leaves_leaves_nothing_behind(hub: Hub) -> None:
    async with dialled(hub) as link:
        await link.send(hello("dev-0", token("dev-0")))
        assert await heard(link) == ACCEPTED
    await until(lambda: not hub.gateway.door.connections)
    assert "dev-0" not in hub.gateway.door.by_client
