"""Fixtures for functions: a bench, and a real warehouse."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from function_bench import Bench

from headrace.core.clock import SystemClock
from headrace.warehouse.postgres import PostgresWarehouse
from headrace.warehouse.server import PostgresServer


@pytest.fixture
def bench(tmp_path: Path) -> Iterable[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def passing_time(bench: Bench) -> Any:
    """Manual time flies by, so that a retry's pause ends at once."""

    async def fly() -> None:
        while True:
            await asyncio.sleep(0)
            bench.clock.advance(1.0)

    task = asyncio.create_task(fly())
    yield
    task.cancel()


@pytest.fixture(scope="session")
def database() -> Iterable[str]:
    """The address of a database on a server of our own."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-functions-"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "state", SystemClock(), root_home=folder / "root")
    asyncio.run(server.start())
    yield server.tcp_url
    asyncio.run(server.stop())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def warehouse(database: str) -> Iterable[PostgresWarehouse]:
    made = PostgresWarehouse(database, SystemClock())
    made.prepare()
    with psycopg.connect(database) as connection:
        for table in ("machine_telemetry", "maintenance_aggregate", "consumer"):
            connection.execute(f"DELETE FROM {table}")
    yield made
    made.close()
