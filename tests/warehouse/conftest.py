"""Real PostgreSQL servers: our own from the wheel, and Debian's where it is installed."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from headrace.core.clock import SystemClock
from headrace.warehouse.postgres import PostgresWarehouse
from headrace.warehouse.server import PostgresServer
from headrace.warehouse.tables import ENTITY_TABLES, METADATA_COLUMNS

DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def reachable() -> Iterator[Path]:
    """A folder that the server's user can reach: pytest's own belong to root alone."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: Path, programs: Path | None) -> Iterator[PostgresServer]:
    server = PostgresServer(folder / "state", SystemClock(), programs=programs, root_home=folder / "root")
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def own_server(reachable: Path) -> Iterator[PostgresServer]:
    yield from _serve(reachable / "own", None)


@pytest.fixture(scope="session")
def debian_server(reachable: Path) -> Iterator[PostgresServer]:
    if not DEBIAN.is_dir():
        pytest.skip(f"PostgreSQL 15 of Debian is not installed ({DEBIAN})")
    yield from _serve(reachable / "debian", DEBIAN)


@pytest.fixture(scope="session", params=["own", "debian"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(f"{request.param}_server")
    return found


def _database(server: PostgresServer, name: str) -> str:
    """A new, empty database; its url over TCP and with a password, as any server's would be."""
    admin = server.tcp_url
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    return admin.removesuffix("headrace") + name


@pytest.fixture
def empty_url(server: PostgresServer) -> str:
    return _database(server, "empty")


@pytest.fixture(scope="session")
def prepared_url(server: PostgresServer) -> str:
    url = _database(server, "test")
    warehouse = PostgresWarehouse(url, SystemClock())
    warehouse.prepare()
    warehouse.close()
    return url


@pytest.fixture
def url(prepared_url: str) -> str:
    """A database with the tables and nothing in them."""
    with psycopg.connect(prepared_url) as connection:
        for table in (*ENTITY_TABLES, *METADATA_COLUMNS, "consumer"):
            connection.execute(f"DELETE FROM {table}")
    return prepared_url


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], PostgresWarehouse]]:
    """Opens the warehouse once more, as another process would."""
    made: list[PostgresWarehouse] = []

    def make() -> PostgresWarehouse:
        made.append(PostgresWarehouse(url, SystemClock()))
        return made[-1]

    yield make
    for warehouse in made:
        warehouse.close()


@pytest.fixture
def warehouse(connect: Callable[[], PostgresWarehouse]) -> PostgresWarehouse:
    return connect()
