"""Compiled kernels as files: what each is called, and how it is built. Standard library only: the wheel's build uses it too.

A kernel is one C source in a `native` folder. A library's name carries a hash of its source and of the compiler's flags, so
one that does not belong to this very source is never found, let alone loaded; building deletes those of older sources.
Floating-point operations are never fused or reordered (`-ffp-contract=off`, no fast-math): a kernel promises its bits.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
BUILD_S = 120.0


def sources() -> list[Path]:
    """Every kernel of the package."""
    return sorted(PACKAGE.glob("*/native/*.c"))


def library_path(source: Path, folder: Path | None = None) -> Path:
    """Where the library of this very source lies once it is built: beside it, unless another folder is given."""
    said = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    return (folder or source.parent) / f"{source.stem}.{sys.platform}-{platform.machine()}.{said}.so"


def build(source: Path, folder: Path | None = None) -> tuple[Path | None, str]:
    """Compile, unless that was done: the library, or None and why there is none. Writes beside it first, then renames."""
    wanted = library_path(source, folder)
    if wanted.exists():
        return wanted, "was built before"
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        return None, "no C compiler (cc, gcc or clang)"
    try:
        with tempfile.TemporaryDirectory(dir=wanted.parent) as scratch:
            fresh = Path(scratch) / wanted.name
            command = [compiler, *FLAGS, "-o", str(fresh), str(source), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
            if done.returncode != 0:
                return None, (done.stderr.strip().splitlines() or ["the compiler failed"])[-1][:300]
            fresh.replace(wanted)
    except (OSError, subprocess.SubprocessError) as exc:
        return None, f"{type(exc).__name__}: {exc}"[:300]
    for old in wanted.parent.glob(f"{source.stem}.{sys.platform}-{platform.machine()}.*.so"):
        if old != wanted:
            old.unlink(missing_ok=True)
    return wanted, f"built with {compiler}"


def build_all() -> dict[Path, tuple[Path | None, str]]:
    """Build every kernel: by source, the library or None, and why."""
    return {source: build(source) for source in sources()}


def report() -> str:
    """Build all, and say in a line each what came of it."""
    return "\n".join(
        f"{source.stem}: {found.name if found else 'none, the plain code is used'} ({why})"
        for source, (found, why) in build_all().items()
    )


if __name__ == "__main__":
    print(report())
