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
from headrace.cli.replay import send_file
from headrace.cli.session import err, out, run
from headrace.cli.simulate import send
from headrace.cli.up import start_detached, stop
from headrace.core import runstate
from headrace.core.clock import SystemClock
from headrace.core.config import FILE_NAME, load_project


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    data: Annotated[
        Path | None, typer.Option(help="A CSV, JSONL or Parquet file to replay instead of the simulated plant.")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo project lives.")] = Path("demo"),
    duration: Annotated[float, typer.Option("--for", help="Seconds; 0 runs until Ctrl-C.")] = 0.0,
    devices: Annotated[int, typer.Option(help="Simulated machines.", min=5)] = 50,
    seed: Annotated[int, typer.Option(help="The same seed is the same plant.")] = 1,
    fresh: Annotated[bool, typer.Option(help="Throw the demo's earlier data away first.")] = False,
    browser: Annotated[bool, typer.Option(help="Open the console in a browser.")] = False,
) -> None:
    """Five simulated factories (or DATA) over real MQTT, through SQL, models, lake, warehouse and alerts to a console.

    Example: headrace demo --for 60
    """
    target = folder if data is None else folder / data.name.split(".")[0]
    if fresh and (target / ".headrace").exists():
        shutil.rmtree(target / ".headrace")
    if not (target / FILE_NAME).exists():
        if data is None:
            make_project(target, "factory")
        else:
            for path, text in project_files(data).items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_text(text, encoding="utf-8")
        err.print(f"made {target}", markup=False)
    project = load_project(str(target))
    started = time.monotonic()
    start_detached(project, ready_timeout_s=120)
    out.print(f"up after {time.monotonic() - started:.1f} s")
    web = runstate.read(project, "web")
    if browser and web is not None:
        webbrowser.open(web.addresses.get("console", ""))
    try:
        if data is None:
            spec = blueprint("factory")
            assert spec.simulate is not None
            plant = spec.simulate(seed, devices, SystemClock().now(), 1.0)
            out.print(f"{len(plant.devices)} machines are connecting over MQTT; stop with Ctrl-C")
            run(send(project, plant, period_s=1.0, duration_s=duration))
        else:
            run(send_file(project, data, duration_s=duration, linger=duration == 0))
    finally:
        stop(project)
        out.print(
            f'data is kept in {target}; ask it: headrace query --project {target} "SELECT count(*) FROM telemetry"',
            markup=False,
        )
