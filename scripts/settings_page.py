"""Write docs/SETTINGS.md from core/config.py: every section, key, default and the comment beside it.

.venv/bin/python scripts/settings_page.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "headrace" / "core" / "config.py"
PAGE = ROOT / "docs" / "SETTINGS.md"
HEADER = """# Settings

Every key of `headrace.toml`, made from the source by `scripts/settings_page.py`. An unknown key is an error that names the
nearest known one. `[gateway] mqtt_port` is overridden by the environment variable `HEADRACE_GATEWAY__MQTT_PORT`.
"""


def page() -> str:
    """The page's text."""
    text = SOURCE.read_text(encoding="utf-8")
    lines = text.splitlines()
    parts = [HEADER]
    for node in ast.parse(text).body:
        about = ast.get_docstring(node) if isinstance(node, ast.ClassDef) else None
        if not isinstance(node, ast.ClassDef) or not about or not about.startswith("["):
            continue
        section, _, rest = about.partition("] ")
        parts.append(f"\n## `{section}]`\n\n{' '.join(rest.split())}\n\n| key | type | default | |\n|---|---|---|---|")
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                default = ast.unparse(field.value) if field.value is not None else "required"
                comment = re.search(r"#\s*(.*)$", lines[(field.end_lineno or field.lineno) - 1])
                kind = ast.unparse(field.annotation).replace("|", "\\|")
                parts.append(f"| `{field.target.id}` | {kind} | `{default}` | {comment[1] if comment else ''} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
