"""The dialect's tokens: sqlglot's tokenizer, told what Stream Analytics scripts are made of.

Only the tokenizer comes from sqlglot. Its parser drops the position of most nodes and forgives what this language must
refuse (a prefix on a built-in, a JOIN without a time bound), so the grammar is ours, in `parser.py` and `script.py`.
"""

from __future__ import annotations

import bisect
from typing import ClassVar, NamedTuple

from sqlglot import tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import TokenError

from headrace.sql.errors import SqlError


class StreamAnalytics(Dialect):  # type: ignore[misc]
    """Azure Stream Analytics' lexis: no keyword is reserved here, names in [] or "", strings in ''."""

    class Tokenizer(tokens.Tokenizer):  # type: ignore[misc]
        IDENTIFIERS: ClassVar[list[str | tuple[str, str]]] = ['"', ("[", "]")]
        QUOTES: ClassVar[list[str]] = ["'"]
        STRING_ESCAPES: ClassVar[list[str]] = ["'"]
        COMMENTS: ClassVar[list[str | tuple[str, str]]] = ["--", ("/*", "*/")]
        KEYWORDS: ClassVar[dict[str, tokens.TokenType]] = {}


class Token(NamedTuple):
    kind: str  # word, name (quoted), text, number, mark, end
    text: str
    line: int
    column: int
    start: int
    end: int  # after the last character


_KINDS = {"VAR": "word", "IDENTIFIER": "name", "STRING": "text", "NUMBER": "number"}
_PAIRS = {"<=", ">=", "<>", "!=", "!<", "!>"}
TOKENS_MAX = 100_000


def tokenize(text: str) -> list[Token]:
    """Tokens of a script, `end` last. Raises SqlError where a quote or comment stays open."""
    if text.startswith("\ufeff"):
        text = " " + text[1:]
    starts = [0] + [index + 1 for index, char in enumerate(text) if char == "\n"]
    try:
        raw = StreamAnalytics().tokenize(text)
    except (TokenError, RecursionError) as exc:
        raise _unclosed(text, starts) from exc
    if len(raw) > TOKENS_MAX:
        raise SqlError(f"the script has {len(raw):,} tokens, at most {TOKENS_MAX:,} are read", hint="split the script")
    found: list[Token] = []
    for token in raw:
        line = bisect.bisect_right(starts, token.start)
        column = token.start - starts[line - 1] + 1
        kind = _KINDS.get(token.token_type.name, "mark")
        last = found[-1] if found else None
        if kind == "mark" and last and last.end == token.start and last.text + token.text in _PAIRS:
            found[-1] = last._replace(text=last.text + token.text, end=token.end + 1)
            continue
        found.append(Token(kind, token.text, line, column, token.start, token.end + 1))
    line = len(starts)
    found.append(Token("end", "end of script", line, len(text) - starts[-1] + 1, len(text), len(text)))
    return found


def _unclosed(text: str, starts: list[int]) -> SqlError:
    """Where the quote, bracket or comment begins that never ends."""
    closers = {"'": "'", '"': '"', "[": "]"}
    at, inside = 0, -1
    while at < len(text):
        if text.startswith("--", at):
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        elif text.startswith("/*", at) or text[at] in closers:
            close = "*/" if text[at] == "/" else closers[text[at]]
            stop = text.find(close, at + len(close))
            if stop < 0:
                inside = at
                break
            at = stop + len(close)
        else:
            at += 1
    where = max(inside, 0)
    line = bisect.bisect_right(starts, where)
    return SqlError(
        f"{text[where : where + 20]!r} is never closed" if inside >= 0 else "the script cannot be read here",
        line=line,
        column=where - starts[line - 1] + 1,
        text=text[where : where + 20],
        hint="close the quote, bracket or comment",
    )
