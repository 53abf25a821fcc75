"""Our own PostgreSQL server: made once, found again, and none the worse for being killed."""

import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from headrace.core.clock import SystemClock
from headrace.core.errors import Unavailable, UserError
from headrace.warehouse.server import PostgresServer

Servers = Callable[[], PostgresServer]


@pytest.fixture(scope="module")
def place(reachable: Path) -> Path:
    """Where one project's state lies, over all these tests: making a server's data takes a second."""
    return reachable / "project"


@pytest.fixture
async def server_of(reachable: Path) -> AsyncIterator[Callable[[Path], PostgresServer]]:
    """Gives the server of a state folder to another process, as it were. What still runs afterwards is stopped."""
    made: list[PostgresServer] = []

    def make(state: Path) -> PostgresServer:
        made.append(PostgresServer(state, SystemClock(), root_home=reachable / "root"))
        return made[-1]

    yield make
    for server in made:
        await server.stop()


@pytest.fixture
def make(server_of: Callable[[Path], PostgresServer], place: Path) -> Servers:
    return lambda: server_of(place)


def write_and_read(url: str) -> int:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")
        found = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert found
    return int(found[0])


async def test_data_port_and_password_stay_over_a_stop(make: Servers) -> None:
    server = make()
    url = await server.start()
    rows = write_and_read(url)
    tcp = server.tcp_url
    await server.stop()
    assert not server.status().running
    assert "not running" in server.problem()
    again = make()
    assert await again.start() == url
    assert again.tcp_url == tcp
    assert write_and_read(again.tcp_url) == rows + 1
    assert again.problem() == ""


async def test_a_server_killed_with_no_warning_starts_again_with_its_data(make: Servers) -> None:
    server = make()
    rows = write_and_read(await server.start())
    pid = server.status().pid
    psutil.Process(pid).kill()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert server.status().pid == 0
    assert write_and_read(await make().start()) == rows + 1


async def test_a_server_left_running_is_taken_over(make: Servers) -> None:
    first, second = make(), make()
    await first.start()
    await second.start()
    assert first.status().pid == second.status().pid != 0
    await second.stop()
    assert first.status().pid == 0


async def test_a_lock_whose_process_id_went_to_another_process_is_no_obstacle(make: Servers) -> None:
    server = make()
    await server.start()
    lock = server.status().data / "postmaster.pid"
    text = lock.read_text()
    await server.stop()
    lock.write_text(text.replace(text.split("\n")[0], str(os.getpid()), 1))
    assert write_and_read(await make().start()) > 0


async def test_a_port_taken_by_somebody_else_is_replaced(make: Servers) -> None:
    server = make()
    await server.start()
    port = server.status().port
    await server.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        await server.start()
        assert server.status().port != port
        assert write_and_read(server.tcp_url) > 0


async def test_a_project_made_anew_at_the_same_place_starts_empty(
    server_of: Callable[[Path], PostgresServer], reachable: Path
) -> None:
    """At a path, moreover, that is too long for a socket's name."""
    state = reachable / ("long" * 20) / "state"
    server = server_of(state)
    assert write_and_read(await server.start()) == 1
    await server.stop()
    old = server.status().data
    shutil.rmtree(state)
    again = server_of(state)
    assert write_and_read(await again.start()) == 1
    assert again.status().data == old or not old.exists()


async def test_only_its_own_user_may_enter_the_data(make: Servers) -> None:
    server = make()
    await server.start()
    data = server.status().data
    assert {oct(folder.stat().st_mode & 0o777) for folder in (data, data.parent)} == {"0o700"}
    assert data.stat().st_uid != 0


async def test_data_of_another_version_are_refused_with_the_way_out(make: Servers) -> None:
    server = make()
    await server.start()
    await server.stop()
    version = server.status().data / "PG_VERSION"
    text = version.read_text()
    version.write_text("9\n")
    with pytest.raises(UserError, match="are PostgreSQL 9's"):
        await make().start()
    version.write_text(text)


def test_a_server_never_started_has_no_url(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path, SystemClock(), root_home=tmp_path)
    assert not server.status().running
    with pytest.raises(Unavailable, match="never started"):
        _ = server.url


async def test_stopping_cuts_off_clients_that_stay(make: Servers) -> None:
    server = make()
    client = psycopg.connect(await server.start())
    pid = server.status().pid
    await server.stop()
    assert not psutil.pid_exists(pid)
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    client.close()


async def test_a_start_that_was_interrupted_while_making_data_begins_again(make: Servers) -> None:
    server = make()
    await server.start()
    await server.stop()
    data = server.status().data
    data.rename(data.with_name("data.part"))
    assert write_and_read(await make().start()) == 1, "the half-made data are gone"


async def test_a_server_that_cannot_start_says_its_last_words(make: Servers) -> None:
    server = make()
    await server.start()
    await server.stop()
    (server.status().data / "global" / "pg_control").unlink()
    with pytest.raises(Unavailable, match="pg_control"):
        await make().start(timeout_s=0.8)
