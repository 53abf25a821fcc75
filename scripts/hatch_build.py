"""The wheel's build: compile the JSON parser into it where a C compiler is at hand. Without one the wheel is a plain one."""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = "src/headrace/sql/native/build.py"


class NativeParser(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to a wheel and gives the wheel this platform's tag; in an editable install it stays where it is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        found, why = runpy.run_path(str(Path(self.root) / BUILD))["build"]()
        self.app.display_info(f"json parser: {found.name if found else 'none'} ({why})")
        if found is None or version == "editable":
            return
        build_data["artifacts"].append(f"/src/headrace/sql/native/{found.name}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
