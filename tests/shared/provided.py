"""What stands beside the project and is never copied into it: conformance cases and real data. Absent, its tests skip."""

from pathlib import Path

BESIDE = Path(__file__).resolve().parents[3] / "shared"
CASES = BESIDE / "conformance" / "asa"
DATA = BESIDE / "data"
