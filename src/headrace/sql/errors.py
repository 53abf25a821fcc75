"""What can be wrong with a script, and with one event while a script runs.

`SqlError` always knows where: every compile-time error carries line, column and the offending text.
"""

from __future__ import annotations

from headrace.core.errors import DataError, UserError


class SqlError(UserError):
    """The script cannot run. `line` and `column` count from 1; `text` is what stands there.

    `others` are further errors found in the same script, by place.
    """

    code = "sql.syntax"

    def __init__(
        self, message: str, *, line: int = 1, column: int = 1, text: str = "", hint: str = "", code: str = ""
    ) -> None:
        super().__init__(f"line {line}, column {column}: {message}", hint=hint, code=code)
        self.line = line
        self.column = column
        self.text = text
        self.others: tuple[SqlError, ...] = ()


class RowError(DataError):
    """An expression failed for one event and the job runs with `on_error = "stop"`."""

    code = "sql.row"


class Fault(Exception):
    """Raised by the scalar form of a function: this value cannot be computed. `reason` is a stable word."""

    def __init__(self, detail: str, reason: str = "bad_argument") -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason
