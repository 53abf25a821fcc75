"""The official device SDK in an environment of its own (it pins paho-mqtt 1.6), made once and kept in `.venv-azure`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOCK = HERE / "azure-device.lock"
HUB_LOCK = HERE / "azure-hub.lock"
PROVISIONING_LOCK = HERE / "azure-provisioning.lock"
INSTALL_TIMEOUT_S = 300


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed: `pip install uv` lets this test make the SDK's environment")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"the SDK's environment cannot be made ({command[1]} {command[2]}): {last}")


def _environment(folder: Path, lock: Path) -> Path:
    """The Python of an environment that holds what `lock` says, made when it is not there."""
    python, installed = folder / "bin" / "python", folder / "installed.lock"
    if installed.exists() and installed.read_text() == lock.read_text() and python.exists():
        return python
    uv = _uv()
    try:
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(lock)])
    except subprocess.TimeoutExpired:
        pytest.skip(f"the SDK's environment could not be made within {INSTALL_TIMEOUT_S} s")
    installed.write_text(lock.read_text())
    return python


@pytest.fixture(scope="session")
def azure_python() -> Path:
    """The Python that has azure-iot-device; the test is skipped with the reason when it cannot be had."""
    return _environment(ROOT / ".venv-azure", LOCK)


@pytest.fixture(scope="session")
def azure_hub_python() -> Path:
    """The Python that has azure-iot-hub and azure-iot-device. It is another one because uamqp has wheels for few platforms."""
    return _environment(ROOT / ".venv-azure-hub", HUB_LOCK)


@pytest.fixture(scope="session")
def azure_provisioning_python() -> Path:
    """The Python that has azure-iothub-provisioningserviceclient."""
    return _environment(ROOT / ".venv-azure-provisioning", PROVISIONING_LOCK)
