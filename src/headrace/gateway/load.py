"""A load generator for MQTT: many connections in one process, at a set rate or as fast as acknowledgements allow.

It must cost far less than what it measures, so a packet is built once per connection and packet id, a batch of them is one
slice of a ring of bytes, and acknowledgements are counted four bytes at a time. `python -m headrace.gateway.load` is one
such process: a plan comes as JSON on its standard input, `ready` and the result go to its standard output.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from headrace.core.clock import Clock, SystemClock
from headrace.wire.mqtt import codec
from headrace.wire.mqtt.codec import Connect

TICK_S = 0.005
CONNECTING_MAX = 200
CONNECT_TIMEOUT_S = 30.0
DRAIN_S = 10.0
PER_ADDRESS_MAX = 25_000
"""Connections from one source address: the system has about 28,000 ports for each."""
IP_BIND_ADDRESS_NO_PORT = 24
"""Of Linux; Python has no name for it before 3.12."""
BUCKETS_PER_DECADE = 60
_EDGES: npt.NDArray[np.float64] = 10.0 ** (
    np.arange(-5 * BUCKETS_PER_DECADE, 3 * BUCKETS_PER_DECADE + 1) / BUCKETS_PER_DECADE
)
"""Upper ends of the buckets of waiting times, seconds: 10 microseconds to 1000 seconds, 4 % wide."""


class LoadDevice(msgspec.Struct, frozen=True):
    """One connection: what it says in CONNECT, and the topic it publishes to."""

    client_id: str
    user: str | None
    password: str | None
    topic: str


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of the generator does. `rate` is messages a second of all its connections together; 0 is as fast as
    the hub acknowledges, with `window` messages in flight on each connection (QoS 0: as fast as the sockets take them)."""

    host: str
    port: int
    ca: str = ""  # path of the authority's certificate; empty is plain TCP
    devices: tuple[LoadDevice, ...]
    rate: float = 0.0
    seconds: float = 10.0
    qos: int = 1
    body_bytes: int = 150
    window: int = 200
    first_address: int = 1  # connections come from 127.0.0.x, x from here on, where the host is on loopback
    keep_alive_s: int = 600


class LoadResult(msgspec.Struct, kw_only=True):
    """What one process saw. `waits` counts PUBACK waiting times in the buckets of `EDGES`."""

    connected: int = 0
    refused: int = 0  # connections that were never let in
    lost: int = 0  # connections that ended before the run did
    connect_s: float = 0.0
    offered: int = 0  # what the rate asked for; at full speed what was sent
    sent: int = 0
    acked: int = 0
    seconds: float = 0.0  # from the first message to the end of the run, without the drain
    acked_in_time: int = 0
    cpu_s: float = 0.0
    max_s: float = 0.0
    waits: list[int] = []


def body_of(size_bytes: int, number: int) -> bytes:
    """A JSON reading of `size_bytes` (80 at least)."""
    start = b'{"machineId":"bench-%05d","temperature":61.25,"vibration":0.421,"note":"' % number
    return start + b"x" * max(0, size_bytes - len(start) - 2) + b'"}'


async def _dialled(source: str, port: int) -> socket.socket:
    """A connection over loopback from an address of it. The system chooses the port as it connects, knowing where to: of ten
    thousand that is a search through few; a port chosen before must differ from all that the address has in use."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


class _Link(asyncio.Protocol):
    """One connection: a ring of ready packets, and when each unacknowledged run of them was sent."""

    def __init__(self, run: _Run, device: LoadDevice, body: bytes) -> None:
        plan = run.plan
        self._run = run
        self._rest = b""
        self._greeted = False
        self.open = False
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self.writable = True
        topic = device.topic.encode()
        flags, id_bytes = (0x32, 2) if plan.qos else (0x30, 0)
        head = bytes([flags]) + codec.encode_length(2 + len(topic) + id_bytes + len(body))
        head += len(topic).to_bytes(2, "big") + topic
        ids = [number.to_bytes(2, "big") for number in range(1, plan.window + 1)] if plan.qos else [b""] * plan.window
        self._size = len(head) + id_bytes + len(body)
        ring = b"".join([head + packet_id + body for packet_id in ids])
        self._ring = ring if plan.rate == 0 else ring[: self._size * plan.window]
        self._next = 0
        self.in_flight = 0
        self._sent_at: deque[tuple[float, int]] = deque()
        self._hello = codec.encode_connect(
            Connect(
                client_id=device.client_id,
                clean_session=True,
                keep_alive_s=plan.keep_alive_s,
                username=device.user,
                password=device.password.encode() if device.password is not None else None,
                will=None,
            )
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._hello)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._run.flooding:
            self.send(self._run.plan.window)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if not self._greeted:
            if len(data) < 4:
                self._rest = data
                return
            self._greeted = True
            self.open = data[0] == codec.CONNACK and data[3] == 0
            if not self.done.done():
                self.done.set_result(self.open)
            data = data[4:]
        whole = len(data) & ~3
        self._rest = data[whole:]
        if whole:
            if data[0:whole:4].count(codec.PUBACK) != whole // 4:
                raise ValueError("something else than a PUBACK came")
            self._acknowledged(whole // 4)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)
        if self.open and not self._run.ended:
            self._run.result.lost += 1
        self.open = False

    def send(self, count: int) -> int:
        """Write up to `count` messages, as far as the window allows. Returns how many."""
        if not self.open or not self.writable or self.transport is None:
            return 0
        window = self._run.plan.window
        if self._run.plan.qos:
            count = min(count, window - self.in_flight)
        if count <= 0:
            return 0
        at = self._next
        end = at + count
        size = self._size
        if end <= window:
            self.transport.write(self._ring[at * size : end * size])
        else:
            self.transport.write(self._ring[at * size :] + self._ring[: (end - window) * size])
        self._next = end % window
        self._run.result.sent += count
        if self._run.plan.qos:
            self.in_flight += count
            self._sent_at.append((self._run.clock.monotonic(), count))
        return count

    def _acknowledged(self, count: int) -> None:
        run = self._run
        self.in_flight -= count
        run.result.acked += count
        now = run.clock.monotonic()
        left = count
        while left:
            at, waiting = self._sent_at[0]
            taken = min(left, waiting)
            run.note(now - at, taken)
            left -= taken
            if taken == waiting:
                self._sent_at.popleft()
            else:
                self._sent_at[0] = (at, waiting - taken)
        if run.flooding:
            self.send(count)


class _Run:
    def __init__(self, plan: LoadPlan, clock: Clock) -> None:
        self.plan = plan
        self.clock = clock
        self.result = LoadResult()
        self.flooding = False
        self.ended = False
        self._noted: list[float] = []
        self._weights: list[int] = []
        self._buckets = np.zeros(len(_EDGES) + 1, np.int64)
        self._links: list[_Link] = []

    def note(self, wait_s: float, count: int) -> None:
        self._noted.append(wait_s)
        self._weights.append(count)
        if len(self._noted) >= 100_000:
            self._count()

    def _count(self) -> None:
        if self._noted:
            waits = np.array(self._noted)
            at = np.searchsorted(_EDGES, waits)
            self._buckets += np.bincount(at, np.array(self._weights), len(self._buckets)).astype(np.int64)
            self.result.max_s = max(self.result.max_s, float(waits.max()))
            self._noted.clear()
            self._weights.clear()

    async def connect(self) -> None:
        """Open all connections, CONNECTING_MAX at a time."""
        plan, began = self.plan, self.clock.monotonic()
        context = None
        if plan.ca:
            context = ssl.create_default_context(cafile=plan.ca)
        room = asyncio.Semaphore(CONNECTING_MAX)
        loop = asyncio.get_running_loop()
        local = plan.host.startswith("127.") or plan.host == "localhost"

        async def one(number: int, device: LoadDevice) -> None:
            link = _Link(self, device, body_of(plan.body_bytes, number))
            async with room:
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        name = plan.host if context else None
                        if local:
                            source = f"127.0.0.{plan.first_address + number // PER_ADDRESS_MAX}"
                            dialled = await _dialled(source, plan.port)
                            await loop.create_connection(lambda: link, sock=dialled, ssl=context, server_hostname=name)
                        else:
                            await loop.create_connection(
                                lambda: link, plan.host, plan.port, ssl=context, server_hostname=name
                            )
                        let_in = await link.done
                except (OSError, TimeoutError):
                    let_in = False
            if let_in:
                self._links.append(link)

        await asyncio.gather(*(one(number, device) for number, device in enumerate(plan.devices)))
        self.result.connected = len(self._links)
        self.result.refused = len(plan.devices) - len(self._links)
        self.result.connect_s = self.clock.monotonic() - began

    async def run(self) -> LoadResult:
        """Send for as long as the plan says, wait for what is outstanding, close."""
        before = _cpu_s()
        began = self.clock.monotonic()
        if self.plan.rate:
            await self._paced(began)
        else:
            await self._flood(began)
        self.result.seconds = self.clock.monotonic() - began
        self.result.acked_in_time = self.result.acked
        self.result.cpu_s = _cpu_s() - before
        if self.plan.qos:
            for _ in range(int(DRAIN_S / 0.05)):
                if not any(link.open and link.in_flight for link in self._links):
                    break
                await asyncio.sleep(0.05)
        self.ended = True
        for link in self._links:
            if link.transport is not None and link.open:
                link.transport.write(codec.GOODBYE)
                link.transport.close()
        await asyncio.sleep(0.2)  # for what was written to leave
        self._count()
        self.result.waits = self._buckets.tolist()
        return self.result

    async def _paced(self, began: float) -> None:
        """Round robin: each connection is `len(links) / rate` seconds after its last turn. What cannot be sent in its turn,
        since the connection has no room, is offered and not sent."""
        links, plan, at = self._links, self.plan, 0
        while links and (elapsed := self.clock.monotonic() - began) < plan.seconds:
            due = int(elapsed * plan.rate) - self.result.offered
            self.result.offered += due
            turns, extra = divmod(due, len(links))
            for number in range(min(due, len(links))):
                links[(at + number) % len(links)].send(turns + (number < extra))
            at = (at + extra) % len(links)
            await asyncio.sleep(TICK_S)

    async def _flood(self, began: float) -> None:
        self.flooding = True
        for link in self._links:
            link.send(self.plan.window)
        while self.clock.monotonic() - began < self.plan.seconds:
            if not self.plan.qos:
                for link in self._links:
                    link.send(self.plan.window)
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(0.05)
        self.flooding = False
        self.result.offered = self.result.sent


def merged(results: Sequence[LoadResult]) -> dict[str, Any]:
    """Several processes' results as one report: sums, rates, and percentiles of the PUBACK waits in milliseconds."""
    waits = np.sum([result.waits for result in results], axis=0)
    seconds = max(result.seconds for result in results)
    acked, sent = (sum(getattr(result, name) for result in results) for name in ("acked", "sent"))
    in_time = sum(result.acked_in_time for result in results)
    cpu_s = sum(result.cpu_s for result in results)
    report: dict[str, Any] = {
        "connected": sum(result.connected for result in results),
        "refused": sum(result.refused for result in results),
        "lost_connections": sum(result.lost for result in results),
        "connects_per_s": round(sum(result.connected / max(result.connect_s, 1e-9) for result in results)),
        "seconds": round(seconds, 2),
        "offered": sum(result.offered for result in results),
        "sent": sent,
        "acked": acked,
        "sent_per_s": round(sent / seconds),
        "acked_per_s": round(in_time / seconds),
        "generator_cpu_s": round(cpu_s, 2),
        "generator_cpu_share": round(cpu_s / seconds / len(results), 3),
        "generator_processes": len(results),
    }
    if acked:
        report |= {f"puback_p{share:g}_ms": _percentile(waits, share) for share in (50, 99, 99.9)}
        report["puback_max_ms"] = round(1000 * max(result.max_s for result in results), 2)
    return report


def _percentile(counts: npt.NDArray[np.int64], share: float) -> float:
    at = int(np.searchsorted(np.cumsum(counts), share / 100 * counts.sum()))
    return round(1000 * float(_EDGES[min(at, len(_EDGES) - 1)]), 2)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def allow_many_descriptors() -> None:
    """Raise this process's soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve_plan(plan: LoadPlan) -> None:
    run = _Run(plan, SystemClock())
    await run.connect()
    print(json.dumps({"ready": run.result.connected, "connect_s": run.result.connect_s}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    result = await run.run()
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    allow_many_descriptors()
    uvloop.run(_serve_plan(msgspec.json.decode(sys.stdin.readline(), type=LoadPlan)))
