"""Plugins: one file that defines a spec value at module level. No list to edit.

`collect(package, kind)` imports the modules of a package (and of the entry-point group of the same name) and gathers
the module-level values of type `kind`.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TypeVar

T = TypeVar("T")


def collect(package: str, kind: type[T]) -> list[T]:
    """All specs of type `kind` in `package`'s modules, by module name; third parties' after ours."""
    folder = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(folder.__path__, package + "."))
    modules = [importlib.import_module(name) for name in names]
    modules += [point.load() for point in entry_points(group=package)]
    specs: list[T] = []
    for module in modules:
        values = vars(module).values() if hasattr(module, "__dict__") else ()
        specs += [value for value in values if isinstance(value, kind) and value not in specs]
    return specs
