"""Logs: one JSON object a line, and no values of variables in a traceback."""

import subprocess
import sys

CODE = """
import sys
from headrace.core.observe import logs
import structlog
logs.setup("test", stream=sys.stdout)
def work(payload):
    raise ValueError("no")
try:
    work("secret-payload")
except ValueError:
    structlog.get_logger().error("work.failed", exc_info=True, rows=3)
structlog.get_logger().debug("work.detail")
"""


def test_a_traceback_names_lines_and_never_values() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert '"event": "work.failed"' in line
    assert '"rows": 3' in line
    assert '"exc_type": "ValueError"' in line
    assert "secret-payload" not in line
