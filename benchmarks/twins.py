"""How many twin reads, durable twin updates and direct methods a second does one gateway do over plain MQTT?

Real connections in this process, a gateway of its own in another, documents in SQLite with every update fsynced before it is
answered. Each connection keeps a few requests on their way. One JSON line for each of the three questions.

    python benchmarks/twins.py --devices 50 --at-once 4 --for 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, cast

import uvloop

from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name
from headrace.wire.mqtt import codec

HOST = "127.0.0.1"
FILTERS = ["$iothub/twin/res/#", "$iothub/methods/POST/#"]


class Device(asyncio.Protocol):
    """One connection: asks for or reports its twin as fast as it is answered, and answers methods."""

    def __init__(self, id: str, key: str) -> None:
        self._id, self._key = id, key
        self._parser = codec.FrameParser(1_000_000)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waits_s: list[float] = []
        self.failed = 0
        self._ask: Any = None
        self._sent: dict[bytes, float] = {}
        self._next = 0
        self._end = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        identity = Identity(self._id)
        token = sas.build(f"{HOST}/{identity.path}", self._key, expires_s=int(time.time()) + 3600).encode()
        hello = codec.Connect(self._id, user_name(HOST, identity), token, True, 0, None)
        transport.write(codec.encode_connect(hello) + codec.encode_subscribe(1, [(name, 0) for name in FILTERS]))

    def data_received(self, data: bytes) -> None:
        frames: list[codec.Frame] = []
        self._parser.feed(data, frames)
        out: list[bytes] = []
        for first, topic, _, body in frames:
            if first == codec.SUBACK:
                self.ready.set_result(None)
            elif first & 0xF0 == codec.PUBLISH:
                rid = topic.partition(b"$rid=")[2]
                if topic.startswith(b"$iothub/methods/POST/"):
                    out.append(codec.encode_publish(b"$iothub/methods/res/200/?$rid=" + rid, b'{"ok":true}'))
                else:
                    self._answered(topic, rid.partition(b"&")[0], body, out)
        if out:
            self._transport.write(b"".join(out))

    def run(self, ask: Any, at_once: int, seconds: float) -> asyncio.Future[None]:
        self._ask, self._end = ask, time.monotonic() + seconds
        self.waits_s, self.failed = [], 0
        self.idle = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join(self._request() for _ in range(at_once)))
        return self.idle

    def _request(self) -> bytes:
        self._next += 1
        rid = b"%d" % self._next
        self._sent[rid] = time.monotonic()
        return cast(bytes, self._ask(rid, self._next))

    def _answered(self, topic: bytes, rid: bytes, body: bytes, out: list[bytes]) -> None:
        now = time.monotonic()
        self.waits_s.append(now - self._sent.pop(rid))
        good = topic.startswith((b"$iothub/twin/res/200/", b"$iothub/twin/res/204/"))
        self.failed += not good
        if now < self._end:
            out.append(self._request())
        elif not self._sent and not self.idle.done():
            self.idle.set_result(None)


def read(rid: bytes, _: int) -> bytes:
    return codec.encode_publish(b"$iothub/twin/GET/?$rid=" + rid, b"")


def report(rid: bytes, number: int) -> bytes:
    body = b'{"temperature": %d, "state": {"door": "shut", "count": %d}}' % (number % 90, number)
    return codec.encode_publish(b"$iothub/twin/PATCH/properties/reported/?$rid=" + rid, body, packet_id=1)


class Gateway:
    """The other process."""

    def __init__(self, folder: Path, devices: int) -> None:
        script = Path(__file__).with_name("_hub_gateway.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(devices)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.told = self._line()

    async def ask(self, *command: Any) -> dict[str, Any]:
        stdin = cast(IO[str], self._process.stdin)
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        return await asyncio.to_thread(self._line)

    async def cpu_s(self) -> float:
        return float((await self.ask("cpu"))["cpu_s"])

    def stop(self) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait(30)

    def _line(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(cast(IO[str], self._process.stdout).readline()))


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(options: argparse.Namespace, folder: Path) -> None:
    gateway = Gateway(folder, options.devices)
    loop = asyncio.get_running_loop()
    try:
        devices: list[Device] = []
        for id, key in gateway.told["keys"].items():
            _, device = await loop.create_connection(lambda id=id, key=key: Device(id, key), HOST, gateway.told["port"])
            devices.append(device)
        await asyncio.gather(*(device.ready for device in devices))
        for what in ("updates", "reads", "methods"):
            hub, own, began = await gateway.cpu_s(), own_cpu_s(), time.monotonic()
            if what == "methods":
                at_once = options.devices * options.at_once
                answer = await gateway.ask("methods", options.devices, at_once, options.seconds)
                failed = 0
            else:
                ask = report if what == "updates" else read
                await asyncio.gather(*(device.run(ask, options.at_once, options.seconds) for device in devices))
                waits_s = sorted(wait_s for device in devices for wait_s in device.waits_s)
                failed = sum(device.failed for device in devices)
                p50, p99 = (round(1000 * waits_s[int(len(waits_s) * part)], 2) for part in (0.5, 0.99))
                answer = {"done": len(waits_s), "p50_ms": p50, "p99_ms": p99}
            took_s = time.monotonic() - began
            line = {
                "benchmark": f"twins.{what}",
                "value": round(answer["done"] / took_s),
                "unit": f"{what}/s",
                "failed": failed,
                **answer,
                "seconds": round(took_s, 2),
                "devices": options.devices,
                "at_once": options.at_once,
                "gateway_cpu_s": round(await gateway.cpu_s() - hub, 2),
                "generator_cpu_s": round(own_cpu_s() - own, 2),
                "load": round(os.getloadavg()[0], 1),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "commit": commit(),
            }
            print(json.dumps(line), flush=True)
    finally:
        gateway.stop()


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=4, help="requests on their way per connection")
    parser.add_argument("--for", dest="seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
