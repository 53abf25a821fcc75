"""The compiled form of `spike_dip.Tails`, where it was built (`python -m headrace.core.native`). See tails.c.

It is optional and gives the bits that NumPy gives. Where it is missing NumPy does all, several times slower, and the log
says so once: `detector.plain`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog

from headrace.core.native import library_path

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).parent / "tails.c"
_POINTER, _INT64, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


def load(path: Path) -> Callable[..., None]:
    """`headrace_tails` of a library. Raises OSError, or AttributeError where the library has none."""
    function: Any = ctypes.CDLL(str(path)).headrace_tails
    function.restype = None
    function.argtypes = [*[_POINTER] * 4, _INT64, _INT64, _DOUBLE, *[_POINTER] * 5]
    return function  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def tails() -> Callable[..., None] | None:
    """The function that belongs to this source, or None where none was built or the system refuses it."""
    path = library_path(SOURCE)
    try:
        if path.exists():
            return load(path)
        log.info("detector.plain", reason="the kernel was not built (python -m headrace.core.native)")
    except (OSError, AttributeError) as exc:
        log.warning("detector.plain", reason=str(exc)[:200])
    return None
