"""Keeping a process small: modules that a library would import by itself, and that this process never uses.

PyArrow imports pandas with its first array wherever pandas is installed (the `ml` extra needs it for training). In a
process that never meets a data frame that is most of its start and a third of its memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Hidden:
    """A finder that answers for hidden modules, first of all finders: they are not there."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden in this process)", name=name)
        return None


def hide(*names: str) -> None:
    """Make `import NAME` fail from now on in this process, as if it were not installed. Those already imported stay."""
    sys.meta_path.insert(0, _Hidden(frozenset(names)))
