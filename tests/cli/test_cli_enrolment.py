"""`headrace enrolment`, `headrace device import` and `export`: what people and scripts type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.wire.iothub.provisioning import derive_key


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "headrace.toml").write_text("")
    return tmp_path


def called(project: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", *words, "--project", str(project)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 or done.stdout else done.stderr


def read(project: Path, *words: str) -> Any:
    return json.loads(called(project, *words))


def test_a_group_tells_the_keys_of_its_devices(project: Path) -> None:
    made = read(project, "enrolment", "group", "create", "line", "--site", "north", "--tags", '{"line": 4}', "--json")
    assert made["idScope"] == read(project, "hub", "info", "--json")["provisioning"]["idScope"]
    key = derive_key(made["attestation"]["symmetricKey"]["primaryKey"], "press-7")
    assert called(project, "enrolment", "group", "key", "line", "press-7").strip() == key
    called(project, "enrolment", "group", "disable", "line")
    (listed,) = read(project, "enrolment", "group", "list", "--json")
    assert (listed["provisioningStatus"], listed["initialTwin"]["tags"], listed["site"]) == (
        "disabled",
        {"line": 4},
        "north",
    )
    assert listed["attestation"]["symmetricKey"]["primaryKey"] is None
    called(project, "enrolment", "group", "delete", "line")
    assert "enrolment.not_found" in called(project, "enrolment", "group", "show", "line", code=1)


def test_devices_are_imported_exported_and_bad_lines_told(project: Path) -> None:
    file, errors, copy = project / "devices.csv", project / "errors.txt", project / "copy.jsonl"
    file.write_text("id,site\na,north\nb c,north\nd,south\n")
    found = json.loads(called(project, "device", "import", str(file), "--errors", str(errors), "--json", code=1))
    assert (found["created"], found["kept"], found["failed"], found["errors"][0]["line"]) == (2, 0, 1, 3)
    assert errors.read_text().startswith("line 3: ")
    assert read(project, "device", "export", str(copy), "--json")["exported"] == 2
    assert copy.stat().st_mode & 0o077 == 0
    again = read(project, "device", "import", str(copy), "--json")
    assert (again["created"], again["kept"], again["failed"]) == (0, 2, 0)
