"""The same chain on a PostgreSQL that is not ours: Debian's, over TCP with a password, restarted under load."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from whole_project import POSTGRES, WholeProject, exactly_once

from headrace.core.clock import SystemClock
from headrace.warehouse.server import PostgresServer

DEBIAN = Path("/usr/lib/postgresql/15/bin")
NAME = "headrace's database"
"""Names of other people's databases have quotes and spaces in them."""


@pytest.fixture
def debian() -> Iterator[PostgresServer]:
    if not DEBIAN.is_dir():
        pytest.skip(f"PostgreSQL 15 of Debian is not installed ({DEBIAN})")
    folder = Path(tempfile.mkdtemp(prefix="headrace-sim-"))  # pytest's own folders belong to root alone
    folder.chmod(0o755)
    server = PostgresServer(folder / "state", SystemClock(), programs=DEBIAN, root_home=folder / "root")
    try:
        asyncio.run(server.start())
        with psycopg.connect(server.tcp_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{NAME}"')
        yield server
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


def test_on_debians_postgresql_everything_acknowledged_is_a_row_once(tmp_path: Path, debian: PostgresServer) -> None:
    url = debian.tcp_url.removesuffix("headrace") + NAME.replace("'", "%27").replace(" ", "%20")
    project = WholeProject(tmp_path / "plant", warehouse_url=url)
    acknowledged = tmp_path / "acknowledged"
    with project.running():
        assert POSTGRES not in project.parts()
        devices = project.register(20)
        generator = project.generator(devices, acknowledged, rate=200, connections=20, seconds=8)
        try:
            asyncio.run(debian.stop())
            project.kill("function:entities")
            asyncio.run(debian.start())
            output, _ = generator.communicate(timeout=120)
        finally:
            generator.kill()
            generator.wait(10)
        verdict = project.judge(acknowledged)
    assert json.loads(output.splitlines()[-1])["unacknowledged"] == 0
    assert exactly_once(verdict), verdict
