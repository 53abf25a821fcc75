"""A package imports only from floors below it, never from a neighbour on its own floor (docs/ARCHITECTURE.md)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "headrace"
FLOORS = [
    {"core"},
    {"wire", "detect"},
    {"eventlog", "docstore", "lake", "warehouse", "ledger"},
    {"sql", "connectors", "history"},
    {"devices", "jobs", "functions", "ml", "alerts", "pipelines", "dashboards", "releases"},
    {"gateway", "web", "edge"},
    {"blueprints"},
    {"assembly"},
    {"cli"},
]
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


def imported_packages(path: Path) -> set[str]:
    """The headrace packages that a file imports, absolute or relative, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "headrace" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("headrace.")}
    return found - {"__version__"}


def test_every_package_has_a_floor() -> None:
    packages = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert packages | modules <= FLOOR_OF.keys()


def test_imports_go_down_only() -> None:
    wrong: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if package not in FLOOR_OF:
            continue
        for target in imported_packages(path) - {package}:
            if FLOOR_OF[target] >= FLOOR_OF[package]:
                wrong.append(f"{path.relative_to(SOURCE)} ({FLOOR_OF[package]}) imports {target} ({FLOOR_OF[target]})")
    assert wrong == []


def test_only_the_config_reads_the_environment() -> None:
    readers = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if "os.environ" in path.read_text()}
    assert readers <= {"core/config.py"}
