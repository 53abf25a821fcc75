"""How many messages a second does a gateway make durable and acknowledge, and how long does each wait for its PUBACK?

The load generator on our own device client. Every acknowledged message id goes to --acked, fsynced about ten times a second:
the judge of the kill tests, for what stands there must be in the lake and in the entities exactly once. It survives a gateway
that is killed: it connects again and sends what was not acknowledged once more, with the same message ids.

    python benchmarks/ingest.py --devices devices.json --port 8883 --tls .headrace/authority/ca.pem --rate 5000 --for 300
    python benchmarks/ingest.py --self          # a gateway and a SQLite log of its own in a temporary folder

DEVICES is a JSON object {device id: connection string}. One JSON line comes out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import structlog
import uvloop

from headrace.core.clock import Clock, SystemClock, to_iso
from headrace.core.errors import HeadraceError
from headrace.gateway.client import DeviceClient, Message, Sent

TICK_S = 0.01
FSYNC_S = 0.1
CONNECTING_MAX = 50
CHUNK = 100
SAMPLES_MAX = 2_000_000


class Acknowledged:
    """Ids and waiting times of what was acknowledged; ids go to a file, one a line."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._file: IO[str] | None = path.open("a") if path else None
        self._clock = clock
        self._ids: list[str] = []
        self.count = 0
        self.waits_s: list[float] = []

    def __call__(self, sent: Sequence[Sent]) -> None:
        now = self._clock.monotonic()
        self.count += len(sent)
        if len(self.waits_s) < SAMPLES_MAX:
            self.waits_s += [now - each.sent_at for each in sent]
        if self._file is not None:
            self._ids += [each.message.message_id or "" for each in sent]

    def sync(self) -> None:
        """Write what came since the last time, and make it durable."""
        if self._file is not None and self._ids:
            ids, self._ids = self._ids, []
            self._file.write("\n".join(ids) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    async def keep_syncing(self) -> None:
        while True:
            await self._clock.sleep(FSYNC_S)
            await asyncio.to_thread(self.sync)


class Readings:
    """What one device says: JSON of about `size` bytes, a new message id each."""

    def __init__(self, device: str, run: str, size: int, rng: random.Random) -> None:
        self._device, self._run = device, run
        self._next = 0
        heads = [(rng.gauss(60, 2), rng.gauss(2, 0.2), rng.gauss(5, 0.3), rng.gauss(1500, 20)) for _ in range(64)]
        self._head = f'{{"machineId":"{device}","seq":'.encode()
        self._tails = [self._tail(values, 0) for values in heads]
        pad = size - len(self._body(0, to_iso(0)[:23] + "Z"))
        self._tails = [self._tail(values, max(0, pad)) for values in heads]

    def take(self, count: int, now_iso: str) -> list[Message]:
        first, self._next = self._next, self._next + count
        head = f"{self._run}-{self._device}-"
        return [Message(self._body(n, now_iso), f"{head}{n}") for n in range(first, first + count)]

    def _body(self, number: int, now_iso: str) -> bytes:
        return b'%b%d,"time":"%b"%b' % (self._head, number, now_iso.encode(), self._tails[number & 63])

    @staticmethod
    def _tail(values: tuple[float, float, float, float], pad: int) -> bytes:
        temperature, vibration, pressure, rpm = values
        return (
            f',"temperature":{temperature:.3f},"vibration":{vibration:.4f},"pressure":{pressure:.3f},'
            f'"rpm":{rpm:.1f},"note":"{"." * pad}"}}'
        ).encode()


class Load:
    def __init__(self, args: argparse.Namespace, devices: dict[str, str]) -> None:
        self._args = args
        self._clock = SystemClock()
        self._rng = random.Random(args.seed)
        self.acknowledged = Acknowledged(args.acked, self._clock)
        run = args.run or f"r{self._rng.randrange(1 << 32) if args.seed else os.getpid():x}{self._clock.now() >> 20:x}"
        self.clients = [self._client(text) for text in devices.values()]
        self._readings = [Readings(client.identity.device, run, args.size, self._rng) for client in self.clients]
        self._stop = False

    def _client(self, text: str) -> DeviceClient:
        context = ssl.create_default_context(cafile=self._args.tls) if self._args.tls else None
        return DeviceClient.from_connection_string(
            text,
            port=self._args.port,
            clock=self._clock,
            rng=self._rng,
            tls=context,
            on_ack=self.acknowledged,
            in_flight_max=self._args.in_flight,
        )

    async def run(self) -> dict[str, Any]:
        began = self._clock.monotonic()
        await self._connect()
        connected_s = self._clock.monotonic() - began
        syncing = asyncio.create_task(self.acknowledged.keep_syncing())
        cpu, began = _cpu_s(), self._clock.monotonic()
        try:
            await (self._fast() if self._args.rate == "max" else self._paced(float(self._args.rate)))
            sending_s = self._clock.monotonic() - began
            await self._drain()
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            self.acknowledged.sync()
        took_s = self._clock.monotonic() - began
        result = self._result(took_s, sending_s, connected_s, _cpu_s() - cpu)
        for client in self.clients:
            await client.close()
        return result

    async def _connect(self) -> None:
        gate = asyncio.Semaphore(CONNECTING_MAX)

        async def one(client: DeviceClient) -> None:
            async with gate:
                await client.connect(60)

        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(one(client))

    async def _fast(self) -> None:
        """Every connection sends whenever it has room."""
        end = self._clock.monotonic() + self._args.duration_s

        async def one(client: DeviceClient, readings: Readings) -> None:
            while (now := self._clock.monotonic()) < end:
                batch = readings.take(CHUNK, to_iso(self._clock.now())[:23] + "Z")
                try:
                    await client.publish_many(batch, timeout_s=max(1.0, end - now + self._args.patience_s))
                except TimeoutError:
                    return
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for client, readings in zip(self.clients, self._readings, strict=True):
                group.create_task(one(client, readings))

    async def _paced(self, rate: float) -> None:
        """`rate` messages a second over all connections in turn; what finds no room is made up for later."""
        began = self._clock.monotonic()
        given, turn = 0, 0
        while (passed_s := self._clock.monotonic() - began) < self._args.duration_s:
            due = int(passed_s * rate) - given
            per_client = -(-due // len(self.clients))
            now_iso = to_iso(self._clock.now())[:23] + "Z"
            for _ in range(len(self.clients)):
                if due <= 0:
                    break
                client, readings = self.clients[turn], self._readings[turn]
                turn = (turn + 1) % len(self.clients)
                room = min(per_client, due, client.room)
                if room > 0:
                    client.offer(readings.take(room, now_iso))
                    given, due = given + room, due - room
            await self._clock.sleep(TICK_S)

    async def _drain(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(self._drain_one(client))

    async def _drain_one(self, client: DeviceClient) -> None:
        try:
            await client.drain(self._args.patience_s)
        except TimeoutError:
            return  # the result says how many stayed in flight

    def _result(self, took_s: float, sending_s: float, connected_s: float, cpu_s: float) -> dict[str, Any]:
        waits = np.array(self.acknowledged.waits_s or [0.0]) * 1000
        p50, p99, most = (round(float(value), 2) for value in np.percentile(waits, (50, 99, 100)))
        return {
            "benchmark": "ingest",
            "value": round(self.acknowledged.count / took_s),
            "unit": "acknowledged messages/s",
            "sent": sum(client.sent for client in self.clients),
            "acked": self.acknowledged.count,
            "unacknowledged": sum(client.in_flight for client in self.clients),
            "resent": sum(client.resent for client in self.clients),
            "reconnects": sum(client.reconnects for client in self.clients),
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": most,
            "took_s": round(took_s, 3),
            "sending_s": round(sending_s, 3),
            "connect_s": round(connected_s, 3),
            "cpu_s": round(cpu_s, 2),
            "connections": len(self.clients),
            "rate": self._args.rate,
            "size": self._args.size,
            "tls": bool(self._args.tls),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "commit": _commit(),
        }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=Path, help="JSON file {device id: connection string}")
    parser.add_argument("--devices-prefix", default="", help="only devices whose id starts with this")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--rate", default="max", help="messages a second over all connections, or `max`")
    parser.add_argument("--for", dest="duration_s", type=float, default=10.0, metavar="S")
    parser.add_argument("--size", type=int, default=200, help="bytes of a body")
    parser.add_argument("--port", type=int, default=8883)
    parser.add_argument("--tls", metavar="CA", help="connect over TLS, trusting this CA file")
    parser.add_argument("--acked", type=Path, help="file that acknowledged message ids are appended to")
    parser.add_argument("--in-flight", type=int, default=200, help="unacknowledged messages a connection may have")
    parser.add_argument("--patience-s", type=float, default=60.0, help="wait this long for the last acknowledgements")
    parser.add_argument("--run", default="", help="prefix of message ids; empty makes a new one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit-interval-ms", type=float, default=5.0, help="of the gateway that --self starts")
    parser.add_argument(
        "--self", action="store_true", help="measure a gateway with a SQLite log in a folder of its own"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.self:
        return _measure_own(args)
    if args.devices is None:
        sys.exit("ingest.py: --devices FILE is needed (or --self)")
    known = json.loads(args.devices.read_text())
    chosen = {id: text for id, text in known.items() if id.startswith(args.devices_prefix)}
    chosen = dict(list(chosen.items())[: args.connections])
    if len(chosen) < args.connections:
        sys.exit(
            f"ingest.py: {args.devices} has {len(chosen)} devices {args.devices_prefix!r}*, not {args.connections}"
        )

    async def measured() -> dict[str, Any]:
        return await Load(args, chosen).run()

    try:
        result = uvloop.run(measured())
    except* HeadraceError as group:
        sys.exit(f"ingest.py: {group.exceptions[0]}")
    print(json.dumps(result))
    return 0 if not result["unacknowledged"] else 1


def _measure_own(args: argparse.Namespace) -> int:
    """Start a gateway in a process of its own, measure it from here, and check the log against what was acknowledged."""
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        here = Path(folder)
        server = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).parent / "_ingest_gateway.py"),
                folder,
                str(args.connections),
                str(args.commit_interval_ms),
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdin is not None
            ready = json.loads(server.stdout.readline())
            port = ready["tls_port"] if args.tls else ready["plain_port"]
            options = ["--devices", f"{here}/devices.json", "--port", str(port), "--connections", str(args.connections)]
            options += ["--rate", args.rate, "--for", str(args.duration_s), "--size", str(args.size)]
            options += ["--in-flight", str(args.in_flight), "--acked", f"{here}/acked"]
            options += ["--tls", ready["ca"]] if args.tls else []
            code = main(options)
            server.stdin.close()  # asks it to stop; it answers with what it has
            print(server.stdout.readline().strip())
            return code or server.wait(60)
        finally:
            server.kill()
            server.wait(10)


if __name__ == "__main__":
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(20)
    )
    sys.exit(main())
