"""`headrace bench`: how much a hub takes, measured by a generator that is honest about its own share of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, err, out, print_json, run
from headrace.core import runstate
from headrace.core.clock import TICKS_PER_S
from headrace.core.config import FILE_NAME, Project, load_project
from headrace.core.errors import NotFound, Unavailable, UserError
from headrace.devices.connection_string import parse
from headrace.gateway.load import LoadDevice, LoadPlan, LoadResult, merged
from headrace.wire.iothub import sas
from headrace.wire.iothub.topics import Identity, user_name

bench = typer.Typer(help="Measure this machine's hub.", no_args_is_help=True)

PER_PROCESS_MAX = 25_000
START_TIMEOUT_S = 60.0
SETTLE_S = 0.5
RESULT_TIMEOUT_S = 120.0
STREAM = "telemetry"
TEMPORARY = """[project]
name = "bench"

[logs]
level = "warning"

[gateway]
mqtt_port = 0
https_port = 0
plain_mqtt_port = 0
connections_max = 100000
"""
"""The settings of a hub that is only there to be measured."""


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.callback()
def _group() -> None:
    """Measure this machine's hub."""


@bench.command("ingest")
def ingest(
    connections: Annotated[int, typer.Option(help="How many devices, each on a connection of its own.", min=1)] = 100,
    rate: Annotated[
        str, typer.Option(help="Messages a second of all devices together, or max: as fast as they are acknowledged.")
    ] = "max",
    seconds: Annotated[float, typer.Option("--for", help="How long to send.", min=0.5)] = 10.0,
    tls: Annotated[bool, typer.Option("--tls", help="Over TLS. Default: plain TCP where the hub has it.")] = False,
    qos: Annotated[int, typer.Option(help="1: acknowledged once on disk. 0: not acknowledged.", min=0, max=1)] = 1,
    size: Annotated[int, typer.Option(help="Bytes of a message's body.", min=80, max=200_000)] = 150,
    window: Annotated[
        int, typer.Option(help="Messages in flight on each connection before it waits.", min=1, max=60_000)
    ] = 200,
    processes: Annotated[
        int, typer.Option(help="Processes of the generator. 0: one for each 25,000 devices.", min=0)
    ] = 0,
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send readings from many devices at once and report how long their acknowledgements took.

    Runs against the project that is up; where none is, against a hub of its own in a temporary folder. The report says what
    the generator itself cost: on one machine the two share the cores.

    Example: headrace bench ingest --connections 100 --rate max --for 10
    """
    wanted = _rate(rate)

    async def work() -> None:
        async with _hub(project, tls=tls) as running:
            report = await _measure(
                running,
                connections=connections,
                rate=wanted,
                seconds=seconds,
                tls=tls,
                qos=qos,
                size=size,
                window=window,
                processes=processes or -(-connections // PER_PROCESS_MAX),
            )
        if as_json:
            print_json(report)
        else:
            _show(report)

    run(work())


def _rate(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        found = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        found = 0.0
    if found <= 0:
        raise UserError(f"--rate {text!r} is no number of messages a second", hint="--rate 10000, or --rate max")
    return found


@contextlib.asynccontextmanager
async def _hub(given: str | None, *, tls: bool) -> AsyncIterator[Project]:
    """The project that is up, or a gateway of our own for as long as the measurement takes."""
    try:
        project = load_project(given)
    except NotFound:
        if given is not None:
            raise
    else:
        if _addresses(project):
            yield project
            return
        if given is not None:
            raise Unavailable(f"{project.folder} is not up", hint="start it with `headrace up --detach`")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        err.print("no project is up here: measuring a hub in a temporary folder")
        temporary = _temporary(folder)
        command = (sys.executable, "-m", "headrace", "serve", "gateway", "--project", folder)
        hub = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
        try:
            for _ in range(int(START_TIMEOUT_S / 0.1)):
                if _addresses(temporary) or hub.returncode is not None:
                    break
                await asyncio.sleep(0.1)
            if not _addresses(temporary):
                raise Unavailable("the hub did not start", hint="its words are above")
            yield temporary
        finally:
            with contextlib.suppress(ProcessLookupError):
                hub.terminate()
            await hub.wait()


def _temporary(folder: str) -> Project:
    (Path(folder) / FILE_NAME).write_text(TEMPORARY)
    return load_project(folder)


def _addresses(project: Project) -> dict[str, str]:
    state = runstate.read(project, "gateway")
    return state.addresses if state is not None and state.state == "ready" else {}


async def _measure(
    project: Project,
    *,
    connections: int,
    rate: float,
    seconds: float,
    tls: bool,
    qos: int,
    size: int,
    window: int,
    processes: int,
) -> dict[str, Any]:
    platform = assembly.Platform(project)
    try:
        addresses = _addresses(project)
        address = addresses["mqtt"] if tls or "mqtt-plain" not in addresses else addresses["mqtt-plain"]
        if not tls and "mqtt-plain" not in addresses:
            err.print("this hub has no plain MQTT ([gateway] plain_mqtt_port): measuring over TLS")
        secure = address.startswith("mqtts:")
        devices = await _devices(platform, connections, seconds)
        plans = [
            LoadPlan(
                host=platform.hostname,
                port=int(address.rpartition(":")[2]),
                ca=addresses["ca"] if secure else "",
                devices=tuple(devices[number::processes]),
                rate=rate / processes,
                seconds=seconds,
                qos=qos,
                body_bytes=size,
                window=window,
                first_address=1 + 4 * number,
            )
            for number in range(processes)
        ]
        results, hub = await _run(platform, plans)
        report = {
            "connections": connections,
            "rate": rate or "max",
            "qos": qos,
            "tls": secure,
            "body_bytes": size,
            "window": window,
            **merged(results),
            **hub,
        }
        missing = report["acked"] - report["stored"]
        report["acknowledged_and_missing"] = max(0, missing) if qos else None
        return report
    finally:
        await platform.close()


async def _devices(platform: assembly.Platform, count: int, seconds: float) -> list[LoadDevice]:
    """Registered devices with tokens that outlive the run."""
    ids = [f"bench-{number:05d}" for number in range(1, count + 1)]
    err.print(f"registering {count:,} devices")
    strings = await platform.device_strings(ids, [""] * count)
    expires_s = int(platform.clock.now() / TICKS_PER_S + seconds + 3600)
    made: list[LoadDevice] = []
    for id, text in strings.items():
        fields, identity = parse(text), Identity(id)
        token = sas.build(f"{fields.hostname}/{identity.path}", fields.key, expires_s=expires_s)
        topic = f"{identity.path}/messages/events/"
        made.append(LoadDevice(id, user_name(fields.hostname, identity), token, topic))
    return made


async def _run(platform: assembly.Platform, plans: Sequence[LoadPlan]) -> tuple[list[LoadResult], dict[str, Any]]:
    """Start the generator's processes, let them begin together, and see what the hub used and stored meanwhile."""
    command = (sys.executable, "-m", "headrace.gateway.load")
    workers = [
        await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=64 * 1024 * 1024
        )
        for _ in plans
    ]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task("connecting", total=None)
            for worker, plan in zip(workers, plans, strict=True):
                assert worker.stdin is not None
                worker.stdin.write(msgspec.json.encode(plan) + b"\n")
                await worker.stdin.drain()
            connecting_s = 60 + sum(len(plan.devices) for plan in plans) / 50
            for line in await asyncio.gather(*(_line(worker, connecting_s) for worker in workers)):
                json.loads(line)
            before, stored = _hub_usage(platform.project), await _stored(platform)
            progress.update(task, description=f"sending for {plans[0].seconds:g} s")
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write(b"go\n")
                await worker.stdin.drain()
            lines = await asyncio.gather(*(_line(worker, plans[0].seconds + RESULT_TIMEOUT_S) for worker in workers))
    finally:
        for worker in workers:
            if worker.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    worker.terminate()
                await worker.wait()
    results = [msgspec.json.decode(line, type=LoadResult) for line in lines]
    await asyncio.sleep(SETTLE_S)  # QoS 0: the last batch is on its way to the disk
    after = _hub_usage(platform.project)
    return results, {
        "hub_cpu_s": round(after[0] - before[0], 2),
        "hub_memory_mb": after[1],
        "stored": await _stored(platform) - stored,
    }


async def _line(worker: asyncio.subprocess.Process, timeout_s: float) -> bytes:
    assert worker.stdout is not None
    line = await asyncio.wait_for(worker.stdout.readline(), timeout_s)
    if not line:
        raise Unavailable("a process of the generator ended without a result", hint="its words are above")
    return line


def _hub_usage(project: Project) -> tuple[float, float]:
    """CPU seconds so far and resident megabytes of the gateway's processes."""
    states = [state for state in runstate.read_all(project) if state.part.partition(":")[0] == "gateway"]
    used = runstate.usage(states).values()
    return sum(part["cpu_s"] for part in used), round(sum(part["memory_mb"] for part in used), 1)


async def _stored(platform: assembly.Platform) -> int:
    """Events in the stream so far: the judge of what was acknowledged."""
    _, ends = await platform.log.bounds(STREAM)
    return sum(ends)


def _show(report: dict[str, Any]) -> None:
    out.print(
        f"{report['connected']:,} of {report['connections']:,} devices connected "
        f"({report['connects_per_s']:,}/s{', TLS' if report['tls'] else ''}); {report['lost_connections']:,} lost"
    )
    out.print(
        f"{report['sent']:,} sent in {report['seconds']:g} s, {report['acked']:,} acknowledged "
        f"([bold]{report['acked_per_s']:,}/s[/]), {report['stored']:,} on disk"
    )
    if report["acked"]:
        out.print(
            f"PUBACK after p50 {report['puback_p50_ms']:g} ms, p99 {report['puback_p99_ms']:g} ms, "
            f"max {report['puback_max_ms']:g} ms"
        )
    out.print(
        f"hub: {report['hub_cpu_s']:g} CPU s, {report['hub_memory_mb']:,} MB; generator: {report['generator_cpu_s']:g} CPU s "
        f"({100 * report['generator_cpu_share']:.0f} % of a core in each of {report['generator_processes']} processes)"
    )
    if report["acknowledged_and_missing"]:
        out.print(f"[bold red]{report['acknowledged_and_missing']:,} acknowledged events are not in the log[/]")
