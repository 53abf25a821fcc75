"""Errors, named for who acts.

Every error a person or a program can meet carries what happened (with values), a hint (what to do) and a code that never
changes, so that it can be counted and looked up.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadraceError(Exception):
    """The root of all our errors. `code` is stable; `hint` says what to do next."""

    code = "headrace.error"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(HeadraceError):
    """Change the request: wrong use, wrong config, wrong query."""

    code = "user"


class NotFound(UserError):
    """The named thing does not exist."""

    code = "user.not_found"


class Conflict(UserError):
    """Somebody else changed it first: the etag does not match, or it exists already."""

    code = "user.conflict"


class DataError(HeadraceError):
    """One record is bad: set it aside, count it, go on."""

    code = "data"


class Unavailable(HeadraceError):
    """Not now: retry later. Nothing is wrong with the request."""

    code = "unavailable"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the known name closest to `name`, or an empty text when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""
