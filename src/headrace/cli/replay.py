"""`headrace replay`: a file's rows as messages of devices, over real MQTT.

Every row carries a message id made from file, device and row, so a row sent twice is one event; and what was acknowledged
is remembered in the project, so the same file goes on where an interruption left it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cli.session import ProjectOption, err, out, run
from headrace.cli.simulate import connect
from headrace.connectors.files import FileRows, Rows
from headrace.core.clock import TICKS_PER_S
from headrace.core.config import Project, load_project
from headrace.core.errors import UserError
from headrace.gateway.client import DeviceClient, Message

CHUNK_ROWS = 5000
GAP_MAX_S = 5.0
"""A recording's pauses longer than this are cut to it, so that nobody watches a night without data."""


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet; .gz too.")],
    project: ProjectOption = None,
    device: Annotated[str | None, typer.Option(help="Column that names the device; else found")] = None,
    time_column: Annotated[str | None, typer.Option("--time", help="Column with the event time; else found")] = None,
    speed: Annotated[str, typer.Option(help="How many times faster than recorded, or `max`.")] = "max",
    stream: Annotated[str, typer.Option(help="Stream to send to; see [streams.NAME] devices")] = "telemetry",
    again: Annotated[bool, typer.Option(help="Send it although it was sent before.")] = False,
) -> None:
    """Send a file through the running project as if its devices were there.

    Example: headrace replay telemetry.csv --device unit --time cycle --speed 10
    """
    loaded = load_project(project)
    run(
        send_file(loaded, file, device=device, time_column=time_column, speed=_speed(speed), stream=stream, again=again)
    )


async def send_file(
    project: Project,
    path: Path,
    *,
    device: str | None = None,
    time_column: str | None = None,
    speed: float = 0.0,
    stream: str = "telemetry",
    again: bool = False,
    duration_s: float = 0.0,
    linger: bool = False,
) -> None:
    """Replay `path`; `speed` 0 is as fast as it goes. With `linger` wait for Ctrl-C at the end."""
    rows = FileRows(path, device_column=device, time_column=time_column)
    memory = _Memory(project, rows.fingerprint, stream)
    skip = 0 if again else memory.read()
    if skip >= rows.total:
        out.print(
            f"all {rows.total:,} rows of {path} were acknowledged before; nothing sent (--again sends them)",
            markup=False,
        )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sender = _Sender(project, speed, stream, stop)
    sent = await sender.send(rows, skip, memory, duration_s)
    if skip < rows.total:
        found = f"device {rows.device_column or 'from the file name'}, time {rows.time_column or 'none'}"
        out.print(f"{sent:,} rows of {path} acknowledged (each is on disk); columns: {found}", markup=False)
    if linger and not stop.is_set():
        out.print("the console stays up; stop with Ctrl-C")
        await stop.wait()


class _Sender:
    """Devices' connections, made as their first rows come."""

    def __init__(self, project: Project, speed: float, stream: str, stop: asyncio.Event) -> None:
        self._project = project
        self._speed = speed
        self._stream = stream
        self._stop = stop
        self._clients: dict[str, DeviceClient] = {}
        self._due = 0.0
        self._last_time: int | None = None

    async def send(self, rows: FileRows, skip: int, memory: _Memory, duration_s: float) -> int:
        """Send what comes after the first `skip` rows. Returns how many were acknowledged."""
        done, started = 0, time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
        )
        try:
            with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
                task = progress.add_task(rows.path.name, total=rows.total, completed=skip)
                position = 0
                for chunk in rows.batches(rows_max=CHUNK_ROWS if not self._speed else 200):
                    first, position = position, position + len(chunk.bodies)
                    if position <= skip:
                        continue
                    if not await self._send_chunk(chunk, max(0, skip - first)):
                        break  # stopped in the middle: these rows come again, with the same message ids
                    await asyncio.gather(*(client.drain(timeout_s=60) for client in self._clients.values()))
                    done += position - max(first, skip)
                    memory.write(position)
                    progress.update(task, completed=position)
                    if duration_s and time.monotonic() - started > duration_s:
                        break
        finally:
            await asyncio.gather(*(client.close() for client in self._clients.values()), return_exceptions=True)
        return done

    async def _send_chunk(self, chunk: Rows, start: int) -> bool:
        """Send the rows of a chunk from `start` on. False when told to stop before its end."""
        new = sorted(set(chunk.devices[start:]) - self._clients.keys())
        if new:
            clients = await connect(self._project, new, [""] * len(new))
            self._clients.update(zip(new, clients, strict=True))
        waiting: dict[str, list[Message]] = {}
        for index in range(start, len(chunk.bodies)):
            pause = self._pause(chunk.times[index])
            if pause > 0.005:
                await self._flush(waiting)
                await asyncio.sleep(pause)
                if self._stop.is_set():
                    return False
            device = chunk.devices[index]
            waiting.setdefault(device, []).append(Message(chunk.bodies[index], chunk.message_ids[index]))
        await self._flush(waiting)
        return not self._stop.is_set()

    async def _flush(self, waiting: dict[str, list[Message]]) -> None:
        for device, messages in waiting.items():
            await self._clients[device].publish_many(messages)
        waiting.clear()

    def _pause(self, moment: int | None) -> float:
        """Seconds to wait before a row of event time `moment`, when replaying at a speed."""
        if not self._speed or moment is None:
            return 0.0
        gap = 0.0 if self._last_time is None else (moment - self._last_time) / TICKS_PER_S / self._speed
        self._last_time = max(moment, self._last_time or moment)
        now = time.monotonic()
        self._due = max(self._due or now, now - 1.0) + min(max(gap, 0.0), GAP_MAX_S)
        return self._due - now


class _Memory:
    """How many rows of a file were acknowledged, kept in the project and fsynced."""

    def __init__(self, project: Project, fingerprint: str, stream: str) -> None:
        self._path = project.state_folder("replay") / f"{stream}-{fingerprint}.json"

    def read(self) -> int:
        try:
            return int(json.loads(self._path.read_bytes())["rows"])
        except (FileNotFoundError, ValueError, KeyError):
            return 0

    def write(self, rows: int) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump({"rows": rows}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _speed(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise UserError(f"--speed {text!r} is neither a number above 0 nor `max`", hint="try --speed 10")
    return speed
