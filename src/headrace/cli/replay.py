"""`headrace replay`: the rows of files as messages of devices, over real MQTT.

Every row carries a message id made from file, device and row, so a row sent twice is one event; and what was acknowledged
is remembered in the project, so the same files go on where an interruption left them.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from headrace import assembly
from headrace.cli.replay_memory import Memory
from headrace.cli.replay_sender import Sender
from headrace.cli.session import ProjectOption, err, explain, out, run
from headrace.connectors.file_order import BY_TIME_ROWS_MAX, Chunk, Pace, as_they_stand, by_time, pace_for
from headrace.connectors.files import FileRows, open_files
from headrace.core.clock import SystemClock
from headrace.core.config import Project, load_project
from headrace.core.errors import UserError, nearest

CHUNK_ROWS = 5000
PAUSE_MAX_S = 5.0
"""A recording's pauses longer than this are cut to it, so that nobody watches a night without data."""


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="CSV, JSONL or Parquet, .gz too; or a folder of them.")
    ],
    project: ProjectOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="COL", help="Column that names the device. Default: looked for.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option("--time", metavar="COL", help="Column with the event time. Default: looked for.")
    ] = None,
    speed: Annotated[
        str,
        typer.Option(
            metavar="N|max", help="How many times faster than recorded, all devices together in the order of time."
        ),
    ] = "max",
    stream: Annotated[
        str, typer.Option(metavar="NAME", help="Stream to send to; others than telemetry need `devices = true`.")
    ] = "telemetry",
    again: Annotated[bool, typer.Option("--again", help="Send what was sent before once more, as new events.")] = False,
) -> None:
    """Send files through the running project as if their devices were there.

    Interrupted, the same command goes on where it was: every row is stored once.

    Example: headrace replay train_FD001.csv.gz --device unit --time cycle --speed 10
    """
    loaded = load_project(project)
    check_stream(loaded, stream)
    factor = _speed(speed)
    files = read(file, device=device, time_column=time_column)
    pace = Pace(factor, PAUSE_MAX_S) if factor else None
    if not run(send_files(loaded, file, files, stream=stream, pace=pace, again=again)):
        raise typer.Exit(130)


def read(path: Path, *, device: str | None = None, time_column: str | None = None) -> list[FileRows]:
    """The files to send; those of a folder that cannot be sent are named and left out."""
    files, problems = open_files(path, device_column=device, time_column=time_column)
    for problem in problems:
        err.print("left out: ", end="")
        explain(problem)
    for file in files:
        if file.skipped:
            err.print(f"{file.path.name}: {file.skipped:,} rows cannot be read and are left out", markup=False)
    return files


def check_stream(project: Project, stream: str) -> None:
    """Raises UserError, with the nearest name, for a stream that devices may not send to."""
    allowed = ["telemetry", *assembly.device_streams(project.settings)]
    if stream not in allowed:
        close = nearest(stream, allowed)
        add = f"add to headrace.toml: [streams.{stream}] with devices = true, and start the project again"
        raise UserError(
            f"devices may not send to stream {stream!r}",
            hint=f"{close} Or {add}" if close else add,
            code="replay.stream",
        )


def demo_pace(files: Sequence[FileRows], *, play_s: float) -> Pace:
    """The pace that shows the whole recording in `play_s` seconds; rows without times come evenly."""
    pace = pace_for(files, play_s=play_s) if _fits(files) else None
    return pace or Pace(0.0, play_s / sum(file.total for file in files))


async def send_files(
    project: Project,
    path: Path,
    files: Sequence[FileRows],
    *,
    stream: str = "telemetry",
    pace: Pace | None = None,
    again: bool = False,
    duration_s: float = 0.0,
    linger: bool = False,
) -> bool:
    """Send the rows of `files` that are not in `stream` yet, as fast as it goes or at a `pace`.

    Ends early after `duration_s` (0: never); with `linger` it waits for that or Ctrl-C at the end. False when stopped by a
    signal before the end.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    until = time.monotonic() + duration_s if duration_s else None
    platform = assembly.Platform(project)
    try:
        memories = await _memories(platform, files, stream, again=again)
        sender = Sender(project, memories, log=platform.log, stream=stream, stop=stop)
        total, done = sum(file.total for file in files), sum(memory.done for memory in memories)
        if done >= total:
            out.print(f"all {total:,} rows of {path} are stored already; nothing to send (see --again)", markup=False)
        else:
            if done:
                out.print(f"{done:,} of {total:,} rows of {path} are stored already; going on", markup=False)
            chunks = _in_order(files, pace)
            await sender.send(chunks, path.name, total=total, pace=pace, until=until)
            _report(sender, path, files)
    finally:
        await platform.close()
    if linger and not stop.is_set():
        left_s = None if until is None else max(0.0, until - time.monotonic())
        out.print(
            "the console stays up; stop with Ctrl-C" if left_s is None else f"the console stays up {left_s:.0f} s"
        )
        await _wait(stop, left_s)
    return not stop.is_set()


async def _memories(
    platform: assembly.Platform, files: Sequence[FileRows], stream: str, *, again: bool
) -> list[Memory]:
    folder = platform.project.state_folder("replay")
    memories = [Memory(folder, file, stream) for file in files]
    for memory in memories:
        if again and memory.written:
            memory.start_again(f"{SystemClock().now():x}")
        elif found := await memory.look_up(platform.log, stream):
            err.print(f"{found:,} rows had arrived before the interruption", markup=False)
    return memories


def _in_order(files: Sequence[FileRows], pace: Pace | None) -> Iterator[Chunk]:
    if pace is None:
        return as_they_stand(files, rows_max=CHUNK_ROWS)
    if pace.speed and _fits(files):
        return by_time(files, rows_max=CHUNK_ROWS)
    if pace.speed:
        err.print(f"more than {BY_TIME_ROWS_MAX:,} rows: they are sent in the order of the file, not of time")
    return as_they_stand(files, rows_max=CHUNK_ROWS)


def _fits(files: Sequence[FileRows]) -> bool:
    return sum(file.total for file in files) <= BY_TIME_ROWS_MAX


def _report(sender: Sender, path: Path, files: Sequence[FileRows]) -> None:
    seconds = max(sender.seconds, 0.001)
    devices = len({device for file in files for device in file.devices})
    out.print(
        f"{sender.sent:,} rows of {path} acknowledged in {seconds:.1f} s ({sender.sent / seconds:,.0f}/s); "
        f"each is on disk. {devices:,} {'device' if devices == 1 else 'devices'}, "
        f"from {_columns(file.device_column for file in files) or 'the file names'}; "
        f"time from {_columns(file.time_column for file in files) or 'no column'}",
        markup=False,
    )
    if sender.stopped:
        out.print("stopped before the end; the same command goes on from here")


def _columns(names: Iterable[str]) -> str:
    return ", ".join(sorted({f"column {name!r}" for name in names if name}))


async def _wait(stop: asyncio.Event, seconds: float | None) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


def _speed(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter(f"{text!r} is neither a number above 0 nor `max`", param_hint="--speed")
    return speed
