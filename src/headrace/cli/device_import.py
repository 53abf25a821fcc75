"""`headrace device import` and `export`: devices from a file and to one, by the thousand."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from headrace import assembly
from headrace.cli.session import JsonOption, ProjectOption, out, print_json, run
from headrace.core.config import load_project
from headrace.core.errors import UserError
from headrace.devices.provisioning_files import Format, format_of
from headrace.devices.provisioning_import import DeviceImport, Imported
from headrace.devices.twins import TwinService

SHOWN_MAX = 20
PEEK_BYTES = 4096


def add_to(devices: typer.Typer) -> None:
    devices.command("import")(import_devices)
    devices.command("export")(export_devices)


def import_devices(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, or JSON lines.")],
    project: ProjectOption = None,
    errors: Annotated[Path | None, typer.Option(help="Write every line that failed to this file, with why.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Register all devices of a file; those that exist are kept as they are, so it may be run again after an interruption.

    Columns of CSV: id, and if wanted status, authentication, primaryKey, secondaryKey, primaryThumbprint,
    secondaryThumbprint, site, entityId, tags, desired (JSON objects), tags.NAME and desired.NAME. JSON lines have the same
    names, or those of IoT Hub's own export. A line that makes no sense is told with its number and does not stop the rest;
    the exit code is 1 then.

    Example: headrace device import devices.csv
    """
    try:
        with file.open("rb") as opened:
            format = format_of(file.name, opened.read(PEEK_BYTES))
            opened.seek(0)
            began = time.monotonic()
            found = run(_import(project, opened, format, file.stat().st_size))
            took_s = time.monotonic() - began
    except OSError as exc:
        raise UserError(f"{file}: {exc.strerror}", hint="name a file that can be read", code="device.file") from exc
    if errors is not None:
        errors.write_text("".join(f"line {line}: {problem}\n" for line, problem in found.problems))
    if as_json:
        _print_json(found, took_s)
    else:
        _print(found, took_s)
    if found.failed:
        sys.exit(1)


async def _import(project: str | None, file: BinaryIO, format: Format, size: int) -> Imported:
    platform = assembly.Platform(load_project(project))
    bar = Progress(
        TextColumn("importing"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]:,} devices"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    try:
        with bar:
            task = bar.add_task("import", total=max(size, 1), done=0)

            def told(so_far: Imported) -> None:
                bar.update(task, completed=so_far.position, done=so_far.created + so_far.kept)

            return await _bulk(platform).run(file, format, on_batch=told)
    finally:
        await platform.close()


def export_devices(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv, or else gets JSON lines.")],
    project: ProjectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all devices to a file, keys, tags and desired properties included: it holds secrets.

    Example: headrace device export devices.jsonl
    """
    format: Format = "csv" if file.suffix.lower() == ".csv" else "jsonl"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            count = run(_export(project, opened, format))
    except OSError as exc:
        raise UserError(f"{file}: {exc.strerror}", hint="name a file that can be written", code="device.file") from exc
    if as_json:
        print_json({"exported": count, "file": str(file)})
    else:
        out.print(f"{count:,} devices with their keys in {file}", markup=False)


async def _export(project: str | None, file: BinaryIO, format: Format) -> int:
    platform = assembly.Platform(load_project(project))
    bar = Progress(
        SpinnerColumn(), TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    )
    try:
        with bar:
            task = bar.add_task("export", total=await platform.device_queries.count())
            return await _bulk(platform).export(file, format, on_batch=lambda done: bar.update(task, completed=done))
    finally:
        await platform.close()


def _bulk(platform: assembly.Platform) -> DeviceImport:
    twins = TwinService(platform.docs, platform.clock, random_bytes=os.urandom)
    return DeviceImport(platform.docs, platform.device_commands, platform.device_queries, twins)


def _print(found: Imported, took_s: float) -> None:
    for line, problem in found.problems[:SHOWN_MAX]:
        out.print(f"line {line}: {problem}", markup=False)
    if found.failed > SHOWN_MAX:
        out.print(f"… and {found.failed - SHOWN_MAX:,} more lines; --errors FILE has them", markup=False)
    said = f"{found.created:,} created, {found.kept:,} kept, {found.failed:,} failed"
    out.print(f"{said} in {took_s:.1f} s", markup=False)


def _print_json(found: Imported, took_s: float) -> None:
    print_json(
        {
            "created": found.created,
            "kept": found.kept,
            "failed": found.failed,
            "errors": [{"line": line, "problem": problem} for line, problem in found.problems],
            "seconds": round(took_s, 3),
        }
    )
