"""What does TLS cost: full handshakes a second, CPU a message, memory a held connection?

Three servers in turn, each a process of its own on uvloop: ours (gateway/tls.py, asks for client certificates), Python's `ssl`
(does not ask), and plain TCP. All answer each read with four bytes, as a PUBACK is. The generator runs on the same machine and
says what CPU it took; where it had a whole core, it and not the server was the limit. It looks at the certificate once, then
no more, to leave the server the machine. One JSON line a server comes out.

    python benchmarks/tls.py --for 5 --hold 2000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import uvloop

from headrace.core.clock import SystemClock
from headrace.devices.authority import DevelopmentAuthority
from headrace.gateway.tls import TlsServer, server_context

KINDS = ("plain", "ssl", "ours")
CONNECTING = 32
MESSAGE = b"\x32" + bytes(149)
ANSWER = b"\x40\x02\x00\x01"


class Answering(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER)


async def serve(kind: str, folder: Path) -> None:
    """Print the port; then, for each line on stdin, CPU seconds and resident KiB so far."""
    authority = DevelopmentAuthority(folder, SystemClock())
    loop = asyncio.get_running_loop()
    make: Any = TlsServer(server_context(*authority.server_pair())).wrap(Answering) if kind == "ours" else Answering
    context = authority.server_context() if kind == "ssl" else None
    server = await loop.create_server(make, "127.0.0.1", 0, ssl=context, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024  # noqa: ASYNC240
        print(json.dumps({"cpu_s": time.process_time(), "rss_kib": resident}), flush=True)


class Server:
    """The server's process, from outside."""

    def __init__(self, kind: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--serve", kind, "--folder", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._ask, self._hear = self._process.stdin, self._process.stdout
        self.port = int(self._hear.readline())

    def used(self) -> tuple[float, int]:
        self._ask.write("\n")
        self._ask.flush()
        found = json.loads(self._hear.readline())
        return float(found["cpu_s"]), int(found["rss_kib"])

    def stop(self) -> None:
        self._ask.close()
        self._process.wait(10)


class Caller(asyncio.Protocol):
    """Sends `rounds` reads' worth of `batch` messages, one after the other's answer."""

    def __init__(self, rounds: int, batch: int) -> None:
        self.left = rounds
        self.data = MESSAGE * batch
        self.read = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.read += data
        if len(self.read) < len(ANSWER):
            return
        assert self.read[:4] == ANSWER
        self.read, self.left = b"", self.left - 1
        if self.left > 0:
            self.transport.write(self.data)
        elif not self.done.done():
            self.done.set_result(None)


async def call(port: int, context: ssl.SSLContext | None, rounds: int, batch: int) -> Caller:
    loop = asyncio.get_running_loop()
    name = "localhost" if context else None
    caller = Caller(rounds, batch)
    await loop.create_connection(lambda: caller, "127.0.0.1", port, ssl=context, server_hostname=name)
    await asyncio.wait_for(caller.done, 60)
    return caller


async def handshakes(server: Server, context: ssl.SSLContext | None, for_s: float) -> dict[str, float]:
    """Full ones: each connection is new, sends one message, hears the answer, and is cut."""
    count, end = 0, time.monotonic() + for_s

    async def keep_calling() -> None:
        nonlocal count
        while time.monotonic() < end:
            (await call(server.port, context, 1, 1)).transport.abort()
            count += 1

    cpu, own, began = server.used()[0], time.process_time(), time.monotonic()
    await asyncio.gather(*(keep_calling() for _ in range(CONNECTING)))
    took = time.monotonic() - began
    return {
        "connections_per_s": round(count / took),
        "server_us_per_connection": round((server.used()[0] - cpu) / count * 1e6),
        "server_cpu": round((server.used()[0] - cpu) / took, 2),
        "generator_cpu": round((time.process_time() - own) / took, 2),
    }


async def messages(server: Server, context: ssl.SSLContext | None, batch: int) -> float:
    """CPU microseconds of the server for each message of 150 bytes that comes `batch` at a time."""
    rounds = max(200, 20_000 // batch)
    cpu = server.used()[0]
    await asyncio.gather(*(call(server.port, context, rounds // 4, batch) for _ in range(4)))
    return round((server.used()[0] - cpu) / (rounds // 4 * 4 * batch) * 1e6, 2)


async def held(server: Server, context: ssl.SSLContext | None, count: int) -> dict[str, float]:
    before = server.used()[1]
    kept: list[Caller] = []
    while len(kept) < count:
        more = min(CONNECTING, count - len(kept))
        kept += await asyncio.gather(*(call(server.port, context, 1, 1) for _ in range(more)))
    kib = (server.used()[1] - before) / count
    alive = sum(not caller.transport.is_closing() for caller in kept)
    for caller in kept:
        caller.transport.abort()
    return {"held": alive, "kib_per_connection": round(kib, 1)}


async def measure(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    context = None if kind == "plain" else DevelopmentAuthority(folder, SystemClock()).client_context()
    if context is not None and options.tls == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = Server(kind, folder)
    try:
        (await call(server.port, context, 3, 1)).transport.abort()  # the answer, and whose certificate it is
        if context is not None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        result: dict[str, Any] = {"server": kind, "tls": options.tls if context else None}
        result |= await held(server, context, options.hold)
        result |= await handshakes(server, context, options.seconds)
        for batch in (1, 100):
            result[f"server_us_per_message_of_{batch}"] = await messages(server, context, batch)
    finally:
        server.stop()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="seconds", type=float, default=3.0)
    parser.add_argument("--hold", type=int, default=1000)
    parser.add_argument("--tls", choices=["1.2", "1.3"], default="1.2", help="1.2 is what azure-iot-device speaks")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if options.serve:
        uvloop.run(serve(options.serve, options.folder))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        DevelopmentAuthority(Path(name), SystemClock()).server_pair()
        for kind in [options.only] if options.only else KINDS:
            result = uvloop.run(measure(kind, Path(name), options))
            load = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            print(json.dumps(result | {"commit": commit, "machine": load}), flush=True)


if __name__ == "__main__":
    main()
