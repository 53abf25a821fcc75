"""How many messages a second does the broker fan out, carry at QoS 1 and make durable events of, beside mosquitto?

The same load, on raw sockets and packets made beforehand, against our broker and (where its program is given or installed)
mosquitto with persistence on, in turns. Every message must arrive or be acknowledged before the time is taken. What each has on
disk when it acknowledges differs, and the line says so.

    python benchmarks/broker.py [--mosquitto /usr/sbin/mosquitto] [--rounds 3]

One JSON line comes out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import uvloop

BODY = b"x" * 150
WINDOW = 500
TIMEOUT_S = 120.0


def field(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def packet(first: int, body: bytes) -> bytes:
    length, digits = len(body), bytearray()
    while True:
        length, low = length >> 7, length & 0x7F
        digits.append(low | 0x80 if length else low)
        if not length:
            return bytes((first,)) + bytes(digits) + body


class Client:
    """A 3.1.1 client that counts fixed-size packets by their bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, client_id: str) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(packet(0x10, field(b"MQTT") + b"\4\2\0\0" + field(client_id.encode())))
        assert await reader.readexactly(4) == b"\x20\2\0\0"
        return cls(reader, writer)

    async def subscribe(self, topic_filter: bytes, qos: int) -> None:
        self.writer.write(packet(0x82, b"\0\1" + field(topic_filter) + bytes((qos,))))
        assert await self.reader.readexactly(5) == bytes((0x90, 3, 0, 1, qos))

    async def count(self, size: int) -> None:
        """Read `size` bytes."""
        while size > 0:
            data = await self.reader.read(1 << 18)
            assert data, "closed early"
            size -= len(data)
        assert size == 0, "more than was asked for"

    async def acknowledged(self, topic: bytes, messages: int) -> None:
        """Send QoS 1 messages, at most WINDOW under way, and read their PUBACKs."""
        tail = field(topic)
        sent = done = 0
        rest = 0
        while done < messages:
            room = min(WINDOW - (sent - done), messages - sent)
            if room > 0:
                ids = range(sent, sent + room)
                self.writer.write(
                    b"".join([packet(0x32, tail + (n % 65535 + 1).to_bytes(2, "big") + BODY) for n in ids])
                )
                sent += room
            data = await self.reader.read(1 << 16)
            assert data, "closed early"
            rest += len(data)
            done, rest = done + rest // 4, rest % 4


async def fan_out(port: int) -> int:
    """One sender, 50 readers, QoS 0, paced by the slowest reader so that nobody has a reason to drop."""
    readers = [await Client.open(port, f"reader{n}") for n in range(50)]
    for reader in readers:
        await reader.subscribe(b"bench/#", 0)
    writer = await Client.open(port, "writer")
    one = packet(0x30, field(b"bench/a") + BODY)
    for _ in range(20):
        writer.writer.write(one * 100)
        await asyncio.gather(*(reader.count(len(one) * 100) for reader in readers))
    for client in (*readers, writer):
        client.writer.close()
    return 20 * 100 * len(readers)


async def carry(port: int) -> int:
    """Ten pairs of sender and reader, QoS 1 from the sender, QoS 0 to the reader."""
    per_pair = 3000

    async def pair(number: int) -> None:
        topic = b"pair/%d" % number
        reader, writer = await Client.open(port, f"reader{number}"), await Client.open(port, f"writer{number}")
        await reader.subscribe(topic, 0)
        size = len(packet(0x30, field(topic) + BODY)) * per_pair
        await asyncio.gather(reader.count(size), writer.acknowledged(topic, per_pair))
        reader.writer.close()
        writer.writer.close()

    await asyncio.gather(*(pair(number) for number in range(10)))
    return 10 * per_pair


async def ingest(port: int) -> int:
    """Fifty senders, QoS 1, to topics that nobody reads but (in ours) the event log."""
    per_sender = 2000

    async def sender(number: int) -> None:
        client = await Client.open(port, f"sender{number}")
        await client.acknowledged(b"telemetry/device-%d" % number, per_sender)
        client.writer.close()

    await asyncio.gather(*(sender(number) for number in range(50)))
    return 50 * per_sender


LOADS: dict[str, Callable[[int], Awaitable[int]]] = {"fan_out": fan_out, "carry": carry, "ingest": ingest}


class Ours:
    name = "headrace"

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).parent / "_broker_server.py"), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["port"])

    def stop(self) -> int:
        """Returns how many events its log holds."""
        out, _ = self.process.communicate("\n", timeout=60)
        return int(json.loads(out.strip().splitlines()[-1])["events"])


class Mosquitto:
    name = "mosquitto"

    def __init__(self, folder: Path, program: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        settings = folder / "mosquitto.conf"
        settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
            "max_queued_messages 100000\nmax_inflight_messages 1000\nlog_type error\nuser root\n"
        )
        self.process = subprocess.Popen([program, "-c", str(settings)])
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("mosquitto does not listen")

    def stop(self) -> int:
        self.process.terminate()
        self.process.wait(10)
        return 0


async def measured(load: Callable[[int], Awaitable[int]], port: int, pid: int) -> dict[str, float]:
    broker = psutil.Process(pid)
    before, own, began = broker.cpu_times(), time.process_time(), time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        messages = await load(port)
    took, after = time.monotonic() - began, broker.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {
        "per_s": messages / took,
        "broker_cpu_us": cpu / messages * 1e6,
        "generator_cpu_us": (time.process_time() - own) / messages * 1e6,
    }


def run(rounds: int, program: str | None) -> dict[str, Any]:
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    events = 0
    with tempfile.TemporaryDirectory(prefix="broker-") as folder:
        brokers: list[Ours | Mosquitto] = []
        try:
            brokers.append(Ours(Path(folder)))
            if program:
                brokers.append(Mosquitto(Path(folder), program))
            for _ in range(rounds):
                for name, load in LOADS.items():
                    for broker in brokers:
                        result = uvloop.run(measured(load, broker.port, broker.process.pid))
                        found.setdefault(broker.name, {}).setdefault(name, []).append(result)
            events = brokers[0].stop()
        finally:
            for broker in brokers:
                broker.process.kill()
                broker.process.wait(10)
    assert events == rounds * 100_000, f"{events} events in the log"
    return {
        broker: {
            load: {key: round(statistics.median(each[key] for each in results), 1) for key in results[0]}
            for load, results in loads.items()
        }
        for broker, loads in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mosquitto", default=shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result = run(args.rounds, args.mosquitto)
    print(
        json.dumps(
            {
                "benchmark": "broker",
                "value": result["headrace"]["ingest"]["per_s"],
                "unit": "acknowledged durable events/s",
                "rounds": args.rounds,
                **result,
                "on_disk_at_ack": {
                    "headrace": "the event, fsynced (ingest); nothing (carry: its readers keep no session)",
                    "mosquitto": "nothing: it writes its database every 30 minutes and when it stops",
                },
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            }
        )
    )


if __name__ == "__main__":
    main()
