"""Health: named checks that a part registers; the part is healthy when all of them are."""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[[], str]
"""Returns an empty text when all is well, else what is wrong."""


class Health:
    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def register(self, name: str, check: Check) -> None:
        self._checks[name] = check

    def problems(self) -> dict[str, str]:
        """What is wrong, by check; empty when healthy. A check that raises is a problem, not a crash."""
        found: dict[str, str] = {}
        for name, check in self._checks.items():
            try:
                problem = check()
            except Exception as exc:
                problem = f"{type(exc).__name__}: {exc}"
            if problem:
                found[name] = problem
        return found
