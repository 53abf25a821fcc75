"""Parsing on after a mistake: what is wrong in one statement does not hide what is wrong in the next."""

from __future__ import annotations

from headrace.sql.dialect import Token, tokenize
from headrace.sql.errors import SqlError
from headrace.sql.script import parse_script
from headrace.sql.tree import Script

_ROUNDS_MAX = 20


def parse_all(text: str) -> tuple[Script, list[SqlError]]:
    """The tree of what can be parsed, and the errors in the rest.

    The statement in which an error stands is taken out (its lines stay, so that places stay true) and the rest is parsed
    again. Raises SqlError where nothing is left, or where the text cannot even be cut into tokens.
    """
    errors: list[SqlError] = []
    left = text
    for _ in range(_ROUNDS_MAX):
        try:
            return parse_script(left), errors
        except SqlError as error:
            if errors and left.strip() and error.text == "end of script" and "no SELECT" in str(error):
                raise errors[0] from error
            errors.append(error)
            shorter = _without(left, error)
            if shorter is None or not shorter.strip():
                break
            left = shorter
    _raise(errors)
    raise AssertionError("not reached")


def _raise(errors: list[SqlError]) -> None:
    first, *others = errors
    first.others = tuple(others)
    raise first


def _without(text: str, error: SqlError) -> str | None:
    """The text with the statement blanked in which the error stands; None where it has no such statement."""
    try:
        tokens = tokenize(text)
    except SqlError:
        return None
    starts = _statements(tokens)
    wrong = next((at for at, token in enumerate(tokens) if (token.line, token.column) >= (error.line, error.column)), 0)
    if wrong and (tokens[wrong].kind == "end" or wrong in starts[1:]):
        wrong -= 1  # what the parser missed there belongs to the statement before
    begin = max((at for at in starts if at <= wrong), default=0)
    stop = min((at for at in starts if at > wrong), default=len(tokens) - 1)
    if begin >= stop:
        return None
    cut = slice(tokens[begin].start, tokens[stop].start)
    blank = "".join(char if char == "\n" else " " for char in text[cut])
    return text[: cut.start] + blank + text[cut.stop :]


def _statements(tokens: list[Token]) -> list[int]:
    """Where statements begin: SELECT, WITH or CREATE outside all parentheses, but for the SELECTs after WITH and UNION.

    Where parentheses do not match, a statement word at the start of a line counts as a beginning.
    """
    depth = 0
    found: list[int] = []
    for at, token in enumerate(tokens):
        if token.kind == "mark" and token.text in "()":
            depth = max(0, depth + (1 if token.text == "(" else -1))
        word = token.text.lower() if token.kind == "word" else ""
        before = tokens[at - 1].text.lower() if at else ""
        if word in ("select", "with", "create") and before not in ("union", "all"):
            if depth == 0:
                found.append(at)
            elif token.column == 1 and before != "(":
                depth = 0
                found.append(at)
    return found
