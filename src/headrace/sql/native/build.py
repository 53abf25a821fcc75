"""The compiled parser as a file: what it is called, and how it is built. Standard library only: the wheel's build uses it too.

The file's name carries a hash of the source and of the compiler's flags, so a library that does not belong to this source
is never found, let alone loaded. Building deletes those of older sources.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "json_columns.c"
FLAGS = ("-std=c11", "-O3", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
BUILD_S = 120.0


def library_path(folder: Path = FOLDER) -> Path:
    """Where the library of this very source lies once it is built."""
    said = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    return folder / f"json_columns.{sys.platform}-{platform.machine()}.{said}.so"


def build(folder: Path = FOLDER) -> tuple[Path | None, str]:
    """Compile, unless that was done: the library, or None and why there is none. Writes beside it first, then renames."""
    wanted = library_path(folder)
    if wanted.exists():
        return wanted, "was built before"
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        return None, "no C compiler (cc, gcc or clang)"
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / wanted.name
            command = [compiler, *FLAGS, "-o", str(fresh), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
            if done.returncode != 0:
                return None, (done.stderr.strip().splitlines() or ["the compiler failed"])[-1][:300]
            fresh.replace(wanted)
    except (OSError, subprocess.SubprocessError) as exc:
        return None, f"{type(exc).__name__}: {exc}"[:300]
    for old in folder.glob(f"json_columns.{sys.platform}-{platform.machine()}.*.so"):
        if old != wanted:
            old.unlink(missing_ok=True)
    return wanted, f"built with {compiler}"


def report() -> str:
    """Build, and say in a line what came of it."""
    found, why = build()
    return f"json parser: {found.name if found else 'none, the plain one is used'} ({why})"


if __name__ == "__main__":
    print(report())
