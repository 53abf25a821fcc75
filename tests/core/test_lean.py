"""A hidden module is as if it were not installed, and only in its process."""

import subprocess
import sys


def test_a_hidden_module_is_not_imported_by_libraries() -> None:
    code = """
from headrace.core.lean import hide
hide("pandas")
import sys
import pyarrow as pa
pa.array(["a"])
try:
    import pandas
except ModuleNotFoundError as exc:
    assert exc.name == "pandas"
else:
    raise SystemExit("pandas was imported")
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
