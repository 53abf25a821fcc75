"""Devices in files: CSV with a header, or JSON lines as IoT Hub exports them, read and written.

A line that makes no sense is told with its number and leaves the others alone. Lines are read one after the other, so a file
may be larger than memory.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec
import orjson

from headrace.core.errors import UserError, nearest
from headrace.devices.model import Authentication, Device, Draft, Status
from headrace.devices.rules import check_id, check_key, check_thumbprint
from headrace.devices.twin_rules import Json, check_size, checked

LINE_BYTES_MAX = 1_048_576
Format: TypeAlias = Literal["csv", "jsonl"]
COLUMNS = (
    "id",
    "status",
    "authentication",
    "primaryKey",
    "secondaryKey",
    "primaryThumbprint",
    "secondaryThumbprint",
    "site",
    "entityId",
    "tags",
    "desired",
)
"""Of CSV; `tags` and `desired` hold JSON objects, and `tags.line` or `desired.rate.hz` one value of them."""
ALIASES = {"deviceid": "id", "entity": "entityId"}
_KNOWN = {**{name.lower(): name for name in COLUMNS}, **ALIASES}
_SECTIONS = ("tags", "desired")


class Entry(NamedTuple):
    """One device of a file. `line` counts from 1; `position` is how many bytes of the file are read."""

    line: int
    position: int
    draft: Draft
    tags: Json
    desired: Json


class BadLine(NamedTuple):
    line: int
    position: int
    problem: str


class _Keys(msgspec.Struct, rename="camel"):
    primary_key: str | None = None
    secondary_key: str | None = None


class _Thumbprints(msgspec.Struct, rename="camel"):
    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None


class _Authentication(msgspec.Struct, rename="camel"):
    type: Authentication | None = None
    symmetric_key: _Keys | None = None
    x509_thumbprint: _Thumbprints | None = None


class _Properties(msgspec.Struct, rename="camel"):
    desired: Json = {}


class _Line(msgspec.Struct, rename="camel"):
    """A JSON line: ours, or IoT Hub's. Unknown fields mean nothing."""

    id: str = ""
    device_id: str = ""
    status: Status = "enabled"
    authentication: _Authentication | Authentication | None = None
    primary_key: str | None = None
    secondary_key: str | None = None
    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None
    site: str | None = None
    entity_id: str | None = None
    tags: Json | None = None
    desired: Json | None = None
    properties: _Properties | None = None

    def __repr__(self) -> str:
        return f"_Line(id={self.id!r}, ***)"


_line = msgspec.json.Decoder(_Line)


def format_of(name: str, start: bytes) -> Format:
    """By the file's name, or where that says nothing by how it starts."""
    suffix = name.lower().rpartition(".")[2]
    if suffix == "csv":
        return "csv"
    if suffix in ("json", "jsonl", "ndjson"):
        return "jsonl"
    return "jsonl" if start.lstrip().startswith(b"{") else "csv"


def read(file: BinaryIO, format: Format) -> Iterator[Entry | BadLine]:
    """The devices of a file, and the lines that are none. Raises UserError for a CSV header that cannot be read."""
    return _read_csv(file) if format == "csv" else _read_json(file)


def _read_json(file: BinaryIO) -> Iterator[Entry | BadLine]:
    for number, position, raw in _lines(file):
        if not raw.strip():
            continue
        try:
            if len(raw) > LINE_BYTES_MAX:
                raise UserError(f"the line is above {LINE_BYTES_MAX:,} bytes")
            yield Entry(number, position, *_from_json(_line.decode(raw)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            yield BadLine(number, position, str(exc))
        except UserError as exc:
            yield BadLine(number, position, exc.message)


def _from_json(line: _Line) -> tuple[Draft, Json, Json]:
    """Raises UserError."""
    said = line.authentication
    known = said if isinstance(said, _Authentication) else _Authentication(type=said)
    keys, prints = known.symmetric_key or _Keys(), known.x509_thumbprint or _Thumbprints()
    fields = {
        "id": line.id or line.device_id,
        "status": line.status,
        "authentication": known.type or "",
        "primaryKey": line.primary_key or keys.primary_key or "",
        "secondaryKey": line.secondary_key or keys.secondary_key or "",
        "primaryThumbprint": line.primary_thumbprint or prints.primary_thumbprint or "",
        "secondaryThumbprint": line.secondary_thumbprint or prints.secondary_thumbprint or "",
        "site": line.site or "",
        "entityId": line.entity_id or "",
    }
    desired = line.desired if line.desired is not None else (line.properties or _Properties()).desired
    return _checked(fields, line.tags or {}, desired)


def _read_csv(file: BinaryIO) -> Iterator[Entry | BadLine]:
    at = _At()
    rows = csv.reader(_texts(file, at), strict=True)
    columns: list[tuple[str, tuple[str, ...]]] | None = None
    while True:
        first = at.line + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as exc:
            yield BadLine(first, at.position, str(exc))
            continue
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = _columns(row)
            continue
        try:
            yield Entry(first, at.position, *_from_row(row, columns))
        except UserError as exc:
            yield BadLine(first, at.position, exc.message)


def _columns(header: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(column, path within it) for each. Raises UserError."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for text in header:
        name, *path = text.strip().split(".")
        known = _KNOWN.get(name.lower())
        if known is None or (path and (known not in _SECTIONS or not all(path))):
            raise UserError(
                f"column {text.strip()[:60]!r} is not known",
                hint=nearest(text.strip(), COLUMNS) or f"known are {', '.join(COLUMNS)}, tags.NAME and desired.NAME",
                code="device.file",
            )
        found.append((known, tuple(path)))
    if ("id", ()) not in found:
        raise UserError("there is no column id", hint="the first line names the columns", code="device.file")
    if len(set(found)) < len(found):
        raise UserError("a column stands twice", hint="name each once", code="device.file")
    return found


def _from_row(row: list[str], columns: list[tuple[str, tuple[str, ...]]]) -> tuple[Draft, Json, Json]:
    if len(row) != len(columns):
        raise UserError(f"{len(row)} columns where the header has {len(columns)}")
    fields = dict.fromkeys(COLUMNS, "")
    sections: dict[str, Json] = {name: {} for name in _SECTIONS}
    for (name, path), raw in zip(columns, row, strict=True):
        cell = raw.strip()
        if not cell:
            continue
        if name not in _SECTIONS:
            fields[name] = cell
        elif path:
            _put(sections[name], path, _scalar(cell))
        else:
            sections[name] |= _object(name, cell)
    return _checked(fields, sections["tags"], sections["desired"])


def _put(section: Json, path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        section = section.setdefault(step, {})
        if not isinstance(section, dict):
            raise UserError(f"{step!r} is a value and holds others")
    section[path[-1]] = value


def _scalar(cell: str) -> Any:
    """A number or a truth value as such, all else as text: `007` and `1.2.3` stay what they are."""
    try:
        value = orjson.loads(cell)
    except orjson.JSONDecodeError:
        return cell
    return value if isinstance(value, bool | int | float) else cell


def _object(name: str, cell: str) -> Json:
    try:
        value = orjson.loads(cell)
    except orjson.JSONDecodeError as exc:
        raise UserError(f"{name} is no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise UserError(f"{name} is no JSON object")
    return value


def _checked(fields: dict[str, str], tags: Json, desired: Json) -> tuple[Draft, Json, Json]:
    """Raises UserError with what is wrong, never with a key."""
    keys = {name: fields[name] for name in ("primaryKey", "secondaryKey") if fields[name]}
    prints = {name: fields[name] for name in ("primaryThumbprint", "secondaryThumbprint") if fields[name]}
    kind = fields["authentication"] or ("selfSigned" if prints and not keys else "sas")
    if kind not in ("sas", "selfSigned", "certificateAuthority", "none"):
        raise UserError(f"authentication is {kind[:40]!r}")
    status = (fields["status"] or "enabled").lower()
    if status not in ("enabled", "disabled"):
        raise UserError(f"status is {status[:40]!r}")
    if kind == "selfSigned" and not prints:
        raise UserError("a selfSigned device needs a thumbprint")
    for key in keys.values():
        check_key(key)
    for text in prints.values():
        check_thumbprint(text)
    if tags:
        check_size(tags := checked(tags, "tags"), "tags")
    if desired:
        check_size(desired := checked(desired, "desired"), "desired")
    draft = msgspec.convert(
        {
            "id": check_id(fields["id"]),
            "status": status,
            "authentication": kind,
            "primary_key": keys.get("primaryKey", ""),
            "secondary_key": keys.get("secondaryKey", ""),
            "primary_thumbprint": prints.get("primaryThumbprint", ""),
            "secondary_thumbprint": prints.get("secondaryThumbprint", ""),
            "site": fields["site"],
            "entity_id": fields["entityId"],
        },
        Draft,
    )
    return draft, tags, desired


class _At:
    """How far a file is read."""

    line = 0
    position = 0


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """(number, bytes read, line); of one that is too long only the start."""
    number = position = 0
    while raw := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        position += len(raw)
        kept = raw
        while len(raw) > LINE_BYTES_MAX and not raw.endswith(b"\n"):
            raw = file.readline(LINE_BYTES_MAX + 1)
            position += len(raw)
        yield number, position, kept.removeprefix(b"\xef\xbb\xbf") if number == 1 else kept


def _texts(file: BinaryIO, at: _At) -> Iterator[str]:
    for at.line, at.position, raw in _lines(file):
        yield raw.decode("utf-8", "replace")  # what it was not meant to be is no legal id, key or number either


def writer(file: BinaryIO, format: Format) -> Callable[[Device, Json, Json], None]:
    """Writes one device with its tags and desired properties. What is written can be read again by `read`."""
    if format == "jsonl":
        return lambda device, tags, desired: _write_json(file, device, tags, desired)
    _write_row(file, COLUMNS)
    return lambda device, tags, desired: _write_row(file, _row(device, tags, desired))


def _write_json(file: BinaryIO, device: Device, tags: Json, desired: Json) -> None:
    keys = {"primaryKey": device.primary_key or None, "secondaryKey": device.secondary_key or None}
    prints = {
        "primaryThumbprint": device.primary_thumbprint or None,
        "secondaryThumbprint": device.secondary_thumbprint or None,
    }
    line = {
        "id": device.id,
        "status": device.status,
        "authentication": {"type": device.authentication, "symmetricKey": keys, "x509Thumbprint": prints},
        "site": device.site,
        "entityId": device.entity_id,
        "tags": tags,
        "properties": {"desired": desired},
    }
    file.write(orjson.dumps(line) + b"\n")


def _row(device: Device, tags: Json, desired: Json) -> list[str]:
    return [
        device.id,
        device.status,
        device.authentication,
        device.primary_key,
        device.secondary_key,
        device.primary_thumbprint,
        device.secondary_thumbprint,
        device.site,
        device.entity_id,
        json.dumps(tags) if tags else "",
        json.dumps(desired) if desired else "",
    ]


def _write_row(file: BinaryIO, cells: Any) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    file.write(text.getvalue().encode())
