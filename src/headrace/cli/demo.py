"""`headrace demo`: the whole chain on one machine, with nothing to set up."""

from __future__ import annotations

import shutil
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from headrace.blueprints.explore import project_files
from headrace.cli.init import blueprint, make_project
from headrace.cli.replay import demo_pace, read, send_files
from headrace.cli.session import err, out, run
from headrace.cli.simulate import send
from headrace.cli.up import start_detached, stop
from headrace.connectors.files import FileRows
from headrace.core import runstate
from headrace.core.clock import SystemClock
from headrace.core.config import FILE_NAME, load_project

PLAY_S = 60.0
"""How long a replayed recording takes, however long the recording."""
TAIL_S = 5.0
"""What is left of `--for` after the last row, to see it arrive."""


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER", help="CSV, JSONL or Parquet to replay instead of the simulated plant; or a folder."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo project lives.")] = Path("demo"),
    duration: Annotated[float, typer.Option("--for", help="Seconds; 0 runs until Ctrl-C.", min=0)] = 0.0,
    devices: Annotated[int, typer.Option(help="Simulated machines.", min=5)] = 50,
    seed: Annotated[int, typer.Option(help="The same seed is the same plant.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw the demo's earlier data away first.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the console in a browser.")] = False,
) -> None:
    """Five simulated factories (or DATA) over real MQTT, through SQL, models, lake, warehouse and alerts to a console.

    Example: headrace demo --data measurements.csv --for 90
    """
    files = read(data) if data is not None else []
    target = folder if data is None else folder / data.resolve().name.split(".")[0]
    play_s = min(PLAY_S, max(1.0, duration - TAIL_S)) if duration else PLAY_S
    _make(target, data, files, play_s=play_s, fresh=fresh)
    project = load_project(str(target))
    started = time.monotonic()
    start_detached(project, ready_timeout_s=120)
    try:
        out.print(f"up after {time.monotonic() - started:.1f} s")
        web = runstate.read(project, "web")
        if browser and web is not None:
            webbrowser.open(web.addresses.get("console", ""))
        if data is None:
            spec = blueprint("factory")
            assert spec.simulate is not None
            plant = spec.simulate(seed, devices, SystemClock().now(), 1.0)
            out.print(f"{len(plant.devices)} machines are connecting over MQTT; stop with Ctrl-C")
            run(send(project, plant, period_s=1.0, duration_s=duration))
        else:
            pace = demo_pace(files, play_s=play_s)
            if pace.speed:
                out.print(f"{data} plays {_factor(pace.speed)} times faster than it was recorded", markup=False)
            run(send_files(project, data, files, pace=pace, duration_s=duration, linger=True))
    finally:
        stop(project)
        out.print(
            f"data is kept in {target} (--fresh starts over); ask it: "
            f'headrace query --project {target} "SELECT count(*) FROM telemetry"',
            markup=False,
        )


def _make(target: Path, data: Path | None, files: list[FileRows], *, play_s: float, fresh: bool) -> None:
    """Make the demo's project where there is none, or afresh."""
    if fresh and (target / FILE_NAME).exists():
        shutil.rmtree(target / ".headrace", ignore_errors=True)
        (target / FILE_NAME).unlink()
    if (target / FILE_NAME).exists():
        return
    if data is None:
        make_project(target, "factory")
    else:
        for path, text in project_files(files, name=data.resolve().name, play_s=play_s).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text, encoding="utf-8")
    err.print(f"made {target}", markup=False)


def _factor(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
