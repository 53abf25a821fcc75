"""The wheel's build: compile the kernels into it where a C compiler is at hand. Without one the wheel is a plain one."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = "src/headrace/core/native.py"


class NativeParser(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the libraries to a wheel and gives the wheel this platform's tag; editable, they stay where they lie."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        built = runpy.run_path(str(Path(self.root) / BUILD))["build_all"]()
        for source, (found, why) in built.items():
            self.app.display_info(f"{source.stem}: {found.name if found else 'none'} ({why})")
        libraries = [found for found, _ in built.values() if found is not None]
        if not libraries or version == "editable":
            return
        build_data["artifacts"] += [f"/{found.relative_to(self.root)}" for found in libraries]
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
