"""Bad input through the real doors: refused or set aside with a reason, counted, and nothing else stops."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chain_parts import MESSAGE_BYTES_MAX, Chain, eventually, headrace

from headrace.core import runstate
from headrace.core.clock import TICKS_PER_S, SystemClock
from headrace.core.config import load_project
from headrace.core.errors import UserError
from headrace.gateway.client import DeviceClient, Message
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec


def aside(chain: Chain, device: str) -> list[dict[str, str]]:
    """Rows of `device` in stream set_aside, with the properties that say why."""
    rows = chain.rows(f"SELECT _type, _properties FROM set_aside WHERE _device = '{device}'")
    return [{**json.loads(row["_properties"]), "type": row["_type"]} for row in rows]


def test_a_payload_that_is_no_json_is_stored_and_then_set_aside_by_the_job(chain: Chain) -> None:
    async def work(client: DeviceClient) -> int:
        await client.connect()
        await client.publish_many([Message(b"{not json", "bad-1"), Message(b'{"machineId": 7}', "odd-1")])
        await client.drain(timeout_s=20)
        await client.close()
        return client.acked

    before = chain.rows("SELECT count(*) AS n FROM telemetry")[0]["n"]
    assert asyncio.run(work(chain.client("bad-payload"))) == 2
    assert chain.rows("SELECT count(*) AS n FROM telemetry")[0]["n"] == before + 2
    rows = eventually(lambda: [row for row in aside(chain, "bad-payload") if row.get("stage") == "job:machines"])
    assert "undecodable" in {row["type"] for row in rows}
    assert any(row["stream"] == "telemetry" and row["detail"] for row in rows)

    def job() -> dict[str, Any]:
        return next(one for one in chain.status()["work"] if one["name"] == "machines")

    assert eventually(lambda: job()["set_aside"] >= 1)  # a status is two seconds old at most
    assert job()["state"] == "running"


def test_a_wrong_key_is_refused_with_connack_5(chain: Chain) -> None:
    before = refused(chain)
    client = chain.client("bad-key", base64.b64encode(b"x" * 32).decode())
    with pytest.raises(UserError, match="CONNACK 5"):
        asyncio.run(client.connect())
    assert eventually(lambda: refused(chain) == before + 1)


def test_a_message_above_the_limit_is_set_aside_and_its_connection_closed(chain: Chain) -> None:
    async def work(client: DeviceClient) -> int:
        await client.connect()
        client.offer([Message(b'"' + b"x" * MESSAGE_BYTES_MAX + b'"', "big-1")])
        for _ in range(200):
            if not client.connected:
                break
            await asyncio.sleep(0.02)
        closed = not client.connected
        await client.close()
        return closed and client.acked == 0

    assert asyncio.run(work(chain.client("bad-size")))
    assert refused(chain, "too_large") >= 1
    rows = eventually(lambda: aside(chain, "bad-size"))
    assert {row["type"] for row in rows} == {"too_large"}


def test_a_topic_of_another_device_is_refused(chain: Chain) -> None:
    async def work(port: int, hub: str, key: str) -> bytes:
        identity = Identity("bad-topic")
        token = sas.build(f"{hub}/{identity.path}", key, expires_s=SystemClock().now() // TICKS_PER_S + 600)
        hello = codec.Connect(identity.client_id, user_name(hub, identity), token.encode(), True, 60, None)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(20):
                writer.write(codec.encode_connect(hello))
                assert await reader.readexactly(4) == codec.encode_connack(0)
                writer.write(codec.encode_publish(b"devices/fac1-cnc-001/messages/events/", b"{}", packet_id=1))
                return await reader.read()  # until the gateway closes
        finally:
            writer.close()
            await writer.wait_closed()

    client = chain.client("bad-topic")
    assert asyncio.run(work(chain.port, client._hub, client._key)) == b"", "closed without a PUBACK"
    assert refused(chain, "forbidden_topic") == 1
    assert [row["type"] for row in eventually(lambda: aside(chain, "bad-topic"))] == ["forbidden_topic"]


def test_a_job_with_wrong_sql_says_where_and_stops_nothing_else(chain: Chain) -> None:
    status = chain.status()
    jobs = {one["name"]: one for one in status["work"] if one["part"] == "job"}
    assert jobs["broken"]["state"] == "failed"
    assert "line 2" in jobs["broken"]["error"]
    assert jobs["machines"]["state"] == "running"
    assert {part["state"] for part in status["parts"]} == {"ready"}


def test_an_unknown_setting_stops_up_and_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("[gateway]\nmqtt_prot = 8883\n")
    done = headrace("up", str(tmp_path), project=tmp_path)
    assert done.returncode == 1
    assert "unknown setting 'mqtt_prot' in [gateway]" in done.stderr
    assert "mqtt_port" in done.stderr


def test_a_port_in_use_is_replaced_and_the_devices_address_says_by_which(chain: Chain, tmp_path: Path) -> None:
    port = chain.project.settings.gateway.mqtt_port
    (tmp_path / "headrace.toml").write_text(
        f"[gateway]\nmqtt_port = {port}\nhttps_port = 0\n\n[web]\nport = 0\n\n[warehouse]\nenabled = false\n"
    )
    done = headrace("up", str(tmp_path), "--detach", "--ready-timeout", "60", project=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        state = runstate.read(load_project(str(tmp_path), environ={}), "gateway")
        assert state is not None
        own = urlsplit(state.addresses["mqtt"]).port
        assert own not in (None, port)
        assert socket.create_connection(("127.0.0.1", own), timeout=10).close() is None
    finally:
        headrace("down", project=tmp_path)
    left = headrace("status", "--json", project=tmp_path)
    assert {part["state"] for part in json.loads(left.stdout)["parts"]} == {"stopped"}


def refused(chain: Chain, *reasons: str) -> float:
    """How many the gateway has turned away, for one of `reasons` or for any."""
    if not reasons:
        return chain.metric("gateway", "gateway_refused_total")
    return sum(chain.metric("gateway", "gateway_refused_total", reason=reason) for reason in reasons)
