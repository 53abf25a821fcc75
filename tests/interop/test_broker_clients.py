"""Foreign MQTT clients against the broker: paho-mqtt, aiomqtt, gmqtt and mosquitto's command line, each in its own way.

The broker runs on a thread with an event loop of its own, so that clients that block have the main thread.
"""

from __future__ import annotations

import asyncio
import queue
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.core.clock import SystemClock
from headrace.core.config import BrokerConfig
from headrace.core.identity import EventIds
from headrace.core.observe.metrics import Metrics
from headrace.eventlog.memory import MemoryEventLog
from headrace.gateway.broker.server import Broker

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
aiomqtt = pytest.importorskip("aiomqtt", reason="aiomqtt is not installed")
gmqtt = pytest.importorskip("gmqtt", reason="gmqtt is not installed")
from paho.mqtt.packettypes import PacketTypes  # noqa: E402
from paho.mqtt.properties import Properties  # noqa: E402
from paho.mqtt.subscribeoptions import SubscribeOptions  # noqa: E402

pytestmark = pytest.mark.interop
WAIT_S = 10.0
MOSQUITTO = shutil.which("mosquitto_pub") and shutil.which("mosquitto_sub")


class Running:
    """A broker on a thread; `restart` stops it and starts another on the same folder and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.events = MemoryEventLog(SystemClock())
        self.port = 0
        self._seed = 0
        self.start()

    def start(self) -> None:
        self._seed += 1
        self._broker = Broker(
            BrokerConfig(port=self.port),
            events=self.events,
            folder=self._folder,
            clock=SystemClock(),
            rng=random.Random(self._seed),
            metrics=Metrics(),
            ids=EventIds(bytes((self._seed,))),
            entropy=b"entropy of this test, long enough",
        )
        self.port = self._run(self._broker.start())

    def restart(self) -> None:
        self._run(self._broker.stop())
        self.start()

    def rows(self) -> list[dict[str, Any]]:
        found = self._run(self.events.read_merged("telemetry", (), rows_max=10_000, wait_s=0))
        return list(found.batch.to_pylist())

    def close(self) -> None:
        self._run(self._broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


class Paho:
    """A paho client whose callbacks feed queues, so that every wait has an end."""

    def __init__(self, broker: Running, client_id: str, version: int, *, clean: bool = True, expiry_s: int = 0) -> None:
        self.version = version
        self._broker = broker
        self._properties: Properties | None = None
        self._clean = clean
        kind = paho.MQTTv5 if version == 5 else paho.MQTTv311
        more = {} if version == 5 else {"clean_session": clean}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, protocol=kind, **more)
        if version == 5:
            self._properties = Properties(PacketTypes.CONNECT)
            self._properties.SessionExpiryInterval = expiry_s
        self.messages: queue.Queue[Any] = queue.Queue()
        self._events: queue.Queue[Any] = queue.Queue()
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda client, data, flags, reason, properties: self._events.put(
            (flags, reason, properties)
        )
        self.client.on_subscribe = lambda client, data, mid, reasons, properties: self._events.put(reasons)

    def connect(self) -> Any:
        more = {"clean_start": self._clean, "properties": self._properties} if self.version == 5 else {}
        self.client.connect("127.0.0.1", self._broker.port, 30, **more)
        self.client.loop_start()
        flags, reason, self.told = self._events.get(timeout=WAIT_S)
        assert reason == 0
        return flags

    def subscribe(self, topic_filter: str, qos: int = 2, **more: Any) -> int:
        self.client.subscribe(topic_filter, qos, **more) if not more else self.client.subscribe(topic_filter, **more)
        (reason,) = self._events.get(timeout=WAIT_S)
        return int(reason.value)

    def publish(self, topic: str, payload: bytes, qos: int = 0, **more: Any) -> None:
        self.client.publish(topic, payload, qos, **more).wait_for_publish(WAIT_S)

    def take(self) -> Any:
        return self.messages.get(timeout=WAIT_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def vanish(self) -> None:
        """Lose the connection without a DISCONNECT."""
        self.client.loop_stop()
        self.client._sock_close()


@pytest.fixture
def make(broker: Running) -> Iterator[Callable[..., Paho]]:
    made: list[Paho] = []

    def one(client_id: str, version: int, **more: Any) -> Paho:
        made.append(Paho(broker, client_id, version, **more))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.mark.parametrize("version", [4, 5])
def test_paho_sends_and_receives_at_each_qos(make: Callable[..., Paho], version: int) -> None:
    client = make("myclientid", version)
    client.connect()
    assert client.subscribe("TopicA/#") == 2
    for qos in (0, 1, 2):
        client.publish("TopicA/B", b"qos %d" % qos, qos)
        got = client.take()
        assert (got.topic, got.payload, got.qos, got.retain) == ("TopicA/B", b"qos %d" % qos, qos, False)


@pytest.mark.parametrize("version", [4, 5])
def test_paho_gets_retained_messages_and_wills(make: Callable[..., Paho], version: int) -> None:
    device = make("device", version)
    device.client.will_set("will/device", b"gone", 1, retain=True)
    device.connect()
    for qos in (0, 1, 2):
        device.publish(f"kept/{qos}", b"kept", qos, retain=True)
    reader = make("reader", version)
    reader.connect()
    reader.subscribe("kept/+")
    assert sorted((got.topic, got.qos, got.retain) for got in (reader.take() for _ in range(3))) == [
        (f"kept/{qos}", qos, True) for qos in (0, 1, 2)
    ]
    reader.subscribe("will/#")
    device.vanish()
    got = reader.take()
    assert (got.topic, got.payload, got.qos) == ("will/device", b"gone", 1)


@pytest.mark.parametrize("version", [4, 5])
def test_paho_finds_its_session_and_messages_after_a_restart_of_the_broker(
    broker: Running, make: Callable[..., Paho], version: int
) -> None:
    reader = make("reader", version, clean=False, expiry_s=600)
    assert not reader.connect().session_present
    reader.subscribe("kept/#")
    reader.close()
    writer = make("writer", version)
    writer.connect()
    for number in range(10):
        writer.publish(f"kept/{number}", b"%d" % number, 1 + number % 2)
    writer.close()
    broker.restart()
    reader = make("reader", version, clean=False, expiry_s=600)
    assert reader.connect().session_present
    got = [reader.take() for _ in range(10)]
    for qos in (1, 2):
        assert [int(each.payload) for each in got if each.qos == qos] == [n for n in range(10) if 1 + n % 2 == qos]
    assert reader.messages.empty()


def test_paho_passes_version_5_properties(make: Callable[..., Paho]) -> None:
    client = make("", 5)
    client.connect()
    assert client.told.AssignedClientIdentifier
    asked = Properties(PacketTypes.SUBSCRIBE)
    asked.SubscriptionIdentifier = 5
    client.subscribe("t", options=SubscribeOptions(qos=1), properties=asked)
    given = Properties(PacketTypes.PUBLISH)
    given.ContentType = "text/plain"
    given.ResponseTopic = "answers"
    given.CorrelationData = b"17"
    given.MessageExpiryInterval = 60
    given.PayloadFormatIndicator = 1
    given.UserProperty = [("a", "1"), ("a", "2")]
    client.publish("t", b"x", 1, properties=given)
    got = client.take().properties
    assert (got.ContentType, got.ResponseTopic, got.CorrelationData) == ("text/plain", "answers", b"17")
    assert got.UserProperty == [("a", "1"), ("a", "2")]
    assert (got.PayloadFormatIndicator, got.SubscriptionIdentifier) == (1, [5])
    assert 58 <= got.MessageExpiryInterval <= 60


def test_paho_members_share_a_subscription(make: Callable[..., Paho]) -> None:
    members = [make(f"member{number}", 5) for number in range(2)]
    for member in members:
        member.connect()
        assert member.subscribe("$share/group/work/+", 1) == 1
    writer = make("writer", 5)
    writer.connect()
    for number in range(20):
        writer.publish(f"work/{number}", b"x", 1)
    got = [[member.take().topic for _ in range(10)] for member in members]
    assert sorted(got[0] + got[1]) == sorted(f"work/{number}" for number in range(20))


def test_paho_telemetry_is_in_the_log(broker: Running, make: Callable[..., Paho]) -> None:
    client = make("device", 4)
    client.connect()
    for number in range(50):
        client.publish("telemetry/press-1", b'{"n": %d}' % number, 1 + number % 2)
    rows = broker.rows()
    assert {row["_device"] for row in rows} == {"press-1"}
    assert sorted(row["_body"] for row in rows) == sorted(b'{"n": %d}' % number for number in range(50))


@pytest.mark.parametrize("version", [4, 5])
async def test_aiomqtt_sends_and_receives(broker: Running, version: int) -> None:
    kind = aiomqtt.ProtocolVersion.V5 if version == 5 else aiomqtt.ProtocolVersion.V311
    async with asyncio.timeout(WAIT_S), aiomqtt.Client("127.0.0.1", broker.port, protocol=kind) as client:
        await client.subscribe("room/+", qos=2)
        for qos in (0, 1, 2):
            await client.publish(f"room/{qos}", payload=b"x", qos=qos)
        found = []
        async for message in client.messages:
            found.append((str(message.topic), message.qos))
            if len(found) == 3:
                break
    assert sorted(found) == [("room/0", 0), ("room/1", 1), ("room/2", 2)]


@pytest.mark.parametrize("version", [4, 5])
async def test_gmqtt_sends_and_receives(broker: Running, version: int) -> None:
    got: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()
    granted = asyncio.Event()
    client = gmqtt.Client(f"gmqtt{version}")

    async def on_message(client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
        got.put_nowait((topic, bytes(payload), qos))
        return 0

    client.on_message = on_message
    client.on_subscribe = lambda *_: granted.set()
    async with asyncio.timeout(WAIT_S):
        await client.connect("127.0.0.1", broker.port, version=version)
        client.subscribe("g/#", qos=2)
        await granted.wait()
        for qos in (0, 1, 2):
            client.publish("g/x", b"%d" % qos, qos=qos)
        found = [await got.get() for _ in range(3)]
        await client.disconnect()
    assert sorted(found) == [("g/x", b"%d" % qos, qos) for qos in (0, 1, 2)]


@pytest.mark.skipif(not MOSQUITTO, reason="mosquitto-clients is not installed")
@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_clients_send_and_receive(broker: Running, version: str) -> None:
    host = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", version]

    def publish(topic: str, body: str, qos: str, *more: str) -> None:
        command = ["mosquitto_pub", *host, "-t", topic, "-m", body, "-q", qos, *more]
        subprocess.run(command, check=True, timeout=WAIT_S)

    for qos in ("0", "1", "2"):
        publish(f"m/{qos}", f"body {qos}", qos, "-r")
    command = ["mosquitto_sub", *host, "-t", "m/+", "-q", "2", "-C", "3", "-W", "5", "-F", "%t %q %r %p"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_S)
    assert sorted(done.stdout.splitlines()) == [f"m/{qos} {qos} 1 body {qos}" for qos in ("0", "1", "2")]


@pytest.mark.skipif(not MOSQUITTO, reason="mosquitto-clients is not installed")
def test_mosquitto_keeps_a_session_across_a_restart_of_the_broker(broker: Running) -> None:
    host = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", "311"]
    reader = ["mosquitto_sub", *host, "-i", "keeper", "-c", "-q", "1", "-t", "k/#"]
    subprocess.run([*reader, "-E"], check=True, timeout=WAIT_S)
    for number in range(3):
        command = ["mosquitto_pub", *host, "-t", f"k/{number}", "-m", str(number), "-q", "1"]
        subprocess.run(command, check=True, timeout=WAIT_S)
    broker.restart()
    done = subprocess.run([*reader, "-C", "3", "-W", "5"], check=True, capture_output=True, text=True, timeout=WAIT_S)
    assert done.stdout.split() == ["0", "1", "2"]
