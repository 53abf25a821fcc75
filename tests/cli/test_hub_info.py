"""`headrace hub info`: what others script against."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.core import runstate
from headrace.core.config import load_project

POLICIES = ["iothubowner", "service", "device", "registryRead", "registryReadWrite"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "headrace.toml").write_text("[gateway]\nmqtt_port = 0\nhttps_port = 8443\n[broker]\nport = 1884\n")
    return tmp_path


def called(project: Path, *words: str) -> str:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", "hub", *words, "--project", str(project)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def info(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(called(project, "info", "--json"))
    return found


def test_a_hub_that_is_down_is_told_by_its_settings(project: Path) -> None:
    found = info(project)
    assert (found["running"], found["host"]) == (False, "127.0.0.1")
    assert (found["mqttPort"], found["httpsPort"], found["brokerPort"]) == (None, 8443, 1884)
    assert (found["plainMqttPort"], found["brokerTlsPort"]) == (None, None)
    assert list(found["policies"]) == POLICIES
    for name, policy in found["policies"].items():
        assert policy["connectionString"] == (
            f"HostName=127.0.0.1:8443;SharedAccessKeyName={name};SharedAccessKey={policy['primaryKey']}"
        )
    assert found["connectionString"] == found["policies"]["iothubowner"]["connectionString"]
    assert "BEGIN CERTIFICATE" in Path(found["caFile"]).read_text()
    assert set(found["provisioning"]) == {
        "idScope",
        "host",
        "policy",
        "primaryKey",
        "secondaryKey",
        "connectionString",
    }


def test_a_running_hub_tells_its_own_ports(project: Path) -> None:
    state = runstate.own_state("gateway")
    state.state = "ready"
    state.addresses = {"mqtt": "mqtts://127.0.0.1:40001", "https": "https://127.0.0.1:443", "ca": "/x/ca.pem"}
    runstate.write(load_project(str(project)), state)
    found = info(project)
    assert (found["running"], found["mqttPort"], found["httpsPort"]) == (True, 40001, 443)
    assert found["connectionString"].startswith("HostName=127.0.0.1;SharedAccessKeyName=iothubowner;")


def test_the_keys_stay_until_one_is_rotated(project: Path) -> None:
    before = info(project)
    assert info(project) == before
    assert "new secondary key" in called(project, "rotate-key", "service", "--secondary")
    after = info(project)["policies"]["service"]
    assert after["primaryKey"] == before["policies"]["service"]["primaryKey"]
    assert after["secondaryKey"] != before["policies"]["service"]["secondaryKey"]


def test_people_read_the_same(project: Path) -> None:
    found, text = info(project), called(project, "info")
    for name in POLICIES:
        assert found["policies"][name]["connectionString"] in text
    assert "does not run" in text
    assert found["caFile"] in text
