"""Every case of the conformance set and of our own: straight, at small batch sizes, and killed at every batch."""

from __future__ import annotations

from pathlib import Path

import provided
import pytest

from headrace.sql import cases
from headrace.sql.cases import Cut

SHARED = provided.CASES
OWN = Path(__file__).parent / "cases"
CASES = sorted(SHARED.glob("*.yaml")) + sorted(OWN.glob("*.yaml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_gives_its_rows_however_it_is_cut(path: Path) -> None:
    case = cases.load(path)
    verdict = cases.run_file(path, Cut())
    assert verdict.passed, verdict.problem
    if "expect_error" in case.keys:
        return
    straight = repr(cases.execute(case, Cut())[2])
    for size in (1, 7):
        assert repr(cases.execute(case, Cut(size))[2]) == straight, f"batch size {size} changes the rows"
        assert repr(cases.execute(case, Cut(size, 1))[2]) == straight, "a restored run gives other rows"


def test_the_conformance_set_is_there() -> None:
    if not SHARED.exists():
        pytest.skip("the conformance cases are not on this machine")
    assert len(list(SHARED.glob("*.yaml"))) > 100
