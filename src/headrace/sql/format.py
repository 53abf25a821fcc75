"""Laying out a script: keywords in capitals, one clause a line, comments kept where they were.

It works on tokens, not on the syntax tree, so it also lays out what the engine cannot run yet. The result is read again
before it is given back: the same tokens in the same order, or an error. Formatting twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headrace.sql.dialect import Token, tokenize
from headrace.sql.errors import SqlError
from headrace.sql.parser import RESERVED
from headrace.sql.script import parse_script

WIDTH = 100
INDENT = "    "
_JOIN_HEADS = ("inner", "left", "outer", "cross", "full", "right")
_OPENERS = RESERVED | {"by", "apply", "pattern", "skip"}  # words after which `(` stands apart
_PATTERN_CLAUSES = ("partition", "order", "limit", "measures", "after", "pattern", "define", "one", "all")
_COMMENT = re.compile(r"--[^\n]*|/\*")


@dataclass
class Piece:
    """A token as it will be written, with the comments that belong to it."""

    token: Token
    text: str
    word: str = ""  # lower case, for keywords only
    tight: bool = False  # written against what stands before it
    before: list[str] = field(default_factory=list)  # comments on lines of their own; "" is an empty line
    after: list[str] = field(default_factory=list)  # comments on the same line


@dataclass
class Group:
    """What stands between parentheses."""

    open: Piece
    inside: list[Node] = field(default_factory=list)
    close: Piece | None = None


Node = Piece | Group


def format_script(text: str) -> str:
    """The script, laid out. Raises SqlError where it is no script at all."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    tokens = tokenize(text)
    try:
        parse_script(text)
    except SqlError as exc:
        if exc.code != "sql.unsupported":
            raise
    pieces, rest = _pieces(text, tokens)
    nodes = _nest(iter(pieces))[0]
    lines = _Layout().script(nodes)
    found = "\n".join([*lines, *_trailing(rest, bool(lines))]).rstrip() + "\n"
    _verify(text, tokens, found)
    return found


def _verify(text: str, tokens: Sequence[Token], found: str) -> None:
    """Comments, names, texts and numbers are those that were there; keywords differ in case at most."""
    again = tokenize(found)
    same = len(again) == len(tokens) and all(
        one.kind == other.kind and (one.text == other.text or _keywords_alike(one, other))
        for one, other in zip(tokens, again, strict=True)
    )
    if not same or _comments(text, tokens) != _comments(found, again):
        raise SqlError("the layout of this script would change it", hint="please report it with the script")


def _keywords_alike(one: Token, other: Token) -> bool:
    return one.kind == "word" and one.text.upper() == other.text


def _comments(text: str, tokens: Sequence[Token]) -> list[str]:
    edges = [0, *(edge for token in tokens for edge in (token.start, token.end))]
    gaps = zip(edges[::2], edges[1::2], strict=False)
    return [comment for start, end in gaps for comment, _ in _gap(text[start:end])]


# -- tokens, words and comments


def _gap(text: str) -> list[tuple[str, str]]:
    """The comments between two tokens, each with the white space before it."""
    found: list[tuple[str, str]] = []
    at = 0
    while (match := _COMMENT.search(text, at)) is not None:
        end = match.end()
        if match.group() == "/*":
            end = _block_end(text, end)
        found.append((text[match.start() : end].rstrip(), text[at : match.start()]))
        at = end
    return found


def _block_end(text: str, at: int) -> int:
    """After the end of a block comment; they nest."""
    depth = 1
    while depth and at < len(text):
        if text.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif text.startswith("*/", at):
            depth, at = depth - 1, at + 2
        else:
            at += 1
    return at


def _pieces(text: str, tokens: Sequence[Token]) -> tuple[list[Piece], list[str]]:
    """All tokens but the last (`end`), and the comments on lines of their own after them."""
    pieces: list[Piece] = []
    own: list[str] = []
    for index, token in enumerate(tokens):
        start = tokens[index - 1].end if index else 0
        comments = _gap(text[start : token.start])
        own = []
        for comment, space in comments:
            open_line = pieces and not (pieces[-1].after and pieces[-1].after[-1].startswith("--"))
            if open_line and not own and "\n" not in space:
                pieces[-1].after.append(comment)
            else:
                own += [""] if space.count("\n") > 1 and (own or pieces) else []
                own.append(comment)
        if token.kind == "end":
            break
        if comments and own:
            tail = text[start : token.start].rpartition(comments[-1][0])[2]
            own += [""] if tail.count("\n") > 1 else []
        word = _keyword(tokens, index)
        written = word.upper() if word else text[token.start : token.end]
        tight = token.start == start and index > 0
        pieces.append(Piece(token, written, word, tight, own))
        if (
            written == "," and token.kind == "mark" and index and not own
        ):  # the comma goes before a comment, not below it
            pieces[-1].after, pieces[-2].after = pieces[-2].after, []
    return pieces, own


def _keyword(tokens: Sequence[Token], at: int) -> str:
    """The word in lower case where it is a keyword at this place, else nothing: most words are names elsewhere."""
    token = tokens[at]
    if token.kind != "word":
        return ""
    word, after = token.text.lower(), tokens[at + 1]
    before = tokens[at - 1] if at else None
    last = before.text.lower() if before is not None and before.kind in ("word", "mark") else ""
    following = after.text.lower() if after.kind in ("word", "mark") else ""
    if last in (".", "as") or following == ".":
        return ""
    if word in RESERVED:
        return "" if word == "right" and following == "(" else word
    pairs = {
        "by": last in ("group", "order", "partition", "timestamp"),
        "timestamp": following == "by",
        "partition": following == "by",
        "left": following in ("join", "outer"),
        "outer": following in ("join", "apply"),
        "apply": last in ("cross", "outer"),
        "table": last == "create",
        "all": last == "union",
        "distinct": last == "(" and following not in (")", ",", "."),
        "limit": following == "duration",
        "duration": last == "limit",
        "cast": following == "(",
        "try_cast": following == "(",
        "asc": following in (")", ",", "limit", "when"),
        "desc": following in (")", ",", "limit", "when"),
        "pattern": following == "(" and last != ",",
        "after": following == "match",
        "match": last == "after",
        "skip": following in ("to", "past"),
        "measures": after.kind in ("word", "name") and following != "as",
        "define": after.kind in ("word", "name") and following != "as",
    }
    if word in ("asc", "desc") and last in ("", ",", "("):
        return word if pairs[word] and before is not None and before.kind in ("name", "number") else ""
    return word if pairs.get(word, False) else ""


def _nest(pieces: Iterator[Piece]) -> tuple[list[Node], Piece | None]:
    """Pieces as a tree of parentheses, up to the `)` that closes this level."""
    found: list[Node] = []
    for piece in pieces:
        if piece.token.kind == "mark" and piece.text == ")":
            return found, piece
        if piece.token.kind == "mark" and piece.text == "(":
            inside, close = _nest(pieces)
            found.append(Group(piece, inside, close))
        else:
            found.append(piece)
    return found, None


def _flat(nodes: Sequence[Node]) -> Iterator[Piece]:
    for node in nodes:
        if isinstance(node, Piece):
            yield node
            continue
        yield node.open
        yield from _flat(node.inside)
        if node.close is not None:
            yield node.close


def _word(node: Node | None) -> str:
    return node.word if isinstance(node, Piece) else ""


def _mark(node: Node | None, *marks: str) -> bool:
    return isinstance(node, Piece) and node.token.kind == "mark" and node.text in marks


def _is_query(node: Node | None) -> bool:
    """Whether parentheses hold a query."""
    if not isinstance(node, Group) or not node.inside:
        return False
    return _word(node.inside[0]) == "select" or _is_query(node.inside[0])


def _commented(nodes: Sequence[Node]) -> bool:
    """Whether a comment inside forces a line to end: one before any but the first piece, or after any but the last."""
    pieces = list(_flat(nodes))
    return any(piece.before for piece in pieces[1:]) or any(piece.after for piece in pieces[:-1])


def _joined(pieces: Sequence[Piece], *, pattern: bool = False) -> str:
    """Pieces on one line."""
    text = pieces[0].text if pieces else ""
    for index in range(1, len(pieces)):
        text += (" " if _apart(pieces, index, pattern=pattern) else "") + pieces[index].text
    return text


def _apart(pieces: Sequence[Piece], at: int, *, pattern: bool) -> bool:
    """Whether a space stands between a piece and the one before it."""
    one, other = pieces[at - 1], pieces[at]
    marks = (one.text if one.token.kind == "mark" else "", other.text if other.token.kind == "mark" else "")
    if pattern:
        return not other.tight
    if "." in marks:
        return other.text[:1].isdigit() is False and other.tight is False and one.token.kind == "number"
    if marks[1] in (",", ")", ";") or marks[0] == "(":
        return False
    if marks[1] == "(":
        return one.token.kind not in ("word", "name") or (one.word in _OPENERS - {"cast"} and one.word != "left")
    if marks[0] in ("-", "+", "~"):
        before = pieces[at - 2] if at > 1 else None
        unary = before is None or (before.token.kind == "mark" and before.text not in (")",)) or before.word != ""
        return not unary or marks[1] == marks[0]
    return True


# -- layout


class _Layout:
    """Lines of a script. Every method gives lines without indentation of the level it is called from."""

    def script(self, nodes: list[Node]) -> list[str]:
        """An empty line stands between statements, and after WITH."""
        lines: list[str] = []
        last: Node | None = None
        for statement in _statements(nodes):
            for clause in _clauses(statement):
                apart = bool(lines) and (clause[0] is statement[0] or _word(last) == "with")
                found = self.clause(clause)
                lines += ["", *found[found[0] == "" :]] if apart else found
                last = clause[0]
        return lines

    def query(self, nodes: list[Node]) -> list[str]:
        return [line for clause in _clauses(nodes) for line in self.clause(clause)]

    def clause(self, nodes: list[Node]) -> list[str]:
        head, body = _head(nodes)
        first = next(_flat(nodes))
        lines = list(first.before)
        word = _word(head[0]) if head else ""
        rest = [*head, *body]
        if not any(_is_query(node) for node in rest) and not any(_is_pattern(rest, at) for at in range(len(rest))):
            line = _joined(list(_flat(rest)))
            if not _commented(rest) and len(line) <= WIDTH:
                return [*lines, line + _after(list(_flat(rest))[-1])]
        if word == "with":
            return [*lines, *self.steps(head, body)]
        if word in ("select", "group") and body:
            return [*lines, *self.run(head), *_indented(self.items(body, ","))]
        if word in ("where", "having") and body:
            return [*lines, *self.run(head), *_indented(self.items(body, "and", "or"))]
        on = next((at for at, node in enumerate(rest) if _word(node) == "on"), None)
        if on is not None:
            condition = self.items(rest[on:], "and", "or")
            return [*lines, *self.run(rest[:on]), *_indented(condition)]
        return [*lines, *self.run(rest)]

    def steps(self, head: list[Node], body: list[Node]) -> list[str]:
        """WITH: each step begins on a line of its own, the first one behind WITH."""
        steps = list(_split(body, ","))
        lines = self.run([*head, *steps[0]])
        for step in steps[1:]:
            lines += [*next(_flat(step)).before, *self.run(step)]
        return lines

    def items(self, nodes: list[Node], *separators: str) -> list[str]:
        """One item a line: commas end a line, AND and OR begin one."""
        lines: list[str] = []
        for item in _split(nodes, *separators):
            lines += [*next(_flat(item)).before, *self.run(item)]
        return lines

    def run(self, nodes: list[Node]) -> list[str]:
        """Nodes one after the other, on one line unless a query, a comment or their length breaks it."""
        lines: list[str] = []
        line: list[Piece] = []
        long = len(_joined(list(_flat(nodes)))) > WIDTH - len(INDENT)

        def end() -> None:
            if line:
                text = _joined(line) + _after(line[-1])
                lines.append(INDENT + text if lines and not _mark(line[0], ")") else text)
                line.clear()

        for at, node in enumerate(nodes):
            if isinstance(node, Group) and (_is_query(node) or _is_pattern(nodes, at)):
                inner = self.query(node.inside) if _is_query(node) else self.pattern(node.inside)
                lines += self._opened(line, node, inner)
                line.clear()
                if node.close is not None:
                    lines += _indented(node.close.before)
                    line.append(node.close)
                    if node.close.after:
                        end()
                continue
            if long and _word(node) in ("over", "when", "else", "end"):
                end()
            for piece in _flat([node]):
                if piece.before and (line or lines):
                    end()
                    lines += _indented(piece.before)
                line.append(piece)
                if piece.after:
                    end()
        end()
        return lines

    @staticmethod
    def _opened(line: list[Piece], group: Group, inner: list[str]) -> list[str]:
        before = [] if not line else group.open.before
        start = _joined([*line, group.open]) + _after(group.open)
        if before:
            return [_joined(line), *_indented(before), group.open.text + _after(group.open), *_indented(inner)]
        return [start, *_indented(inner)]

    def pattern(self, nodes: list[Node]) -> list[str]:
        """The inside of MATCH_RECOGNIZE: a line for each of its clauses."""
        lines: list[str] = []
        for part in _pattern_clauses(nodes):
            pieces = list(_flat(part))
            if _commented(part):
                lines += [*pieces[0].before, *self.run(part)]
            else:
                head = [piece for piece in pieces if _word(part[0]) == "pattern"]
                text = _joined(head[:1]) + " " + _joined(head[1:], pattern=True) if head else _joined(pieces)
                lines += [*pieces[0].before, text + _after(pieces[-1])]
        return lines


def _indented(lines: Sequence[str]) -> list[str]:
    """Lines one level deeper. The later lines of a block comment stand in the same text and stay where they are."""
    return [INDENT + line if line else "" for line in lines]


def _after(piece: Piece) -> str:
    return "".join(" " + comment for comment in piece.after)


def _trailing(own: Sequence[str], any_line: bool) -> list[str]:
    return [*([""] if any_line and own and own[0] else []), *own]


def _statements(nodes: list[Node]) -> Iterator[list[Node]]:
    """Statements of a script: a SELECT begins one unless WITH, UNION or a parenthesis leads to it."""
    found: list[Node] = []
    clause = ""
    for at, node in enumerate(nodes):
        word = _word(node)
        last = nodes[at - 1] if at else None
        begins = word in ("with", "create")
        if word == "select":
            begins = clause not in ("", "with", "union")
        elif _is_query(node) and found and clause not in ("with", "union"):
            begins = _word(last) not in ("from", "join", "apply")
        if begins and found:
            yield found
            found, clause = [], ""
        if word in ("with", "select", "union", "create"):
            clause = word
        elif _is_query(node) and clause == "union":
            clause = "select"
        found.append(node)
        if _mark(node, ";"):
            clause = ";"
    if found:
        yield found


def _clauses(nodes: list[Node]) -> Iterator[list[Node]]:
    """Clauses of a query, each with the words that begin it."""
    found: list[Node] = []
    for at, node in enumerate(nodes):
        word = _word(node)
        before = _word(nodes[at - 1]) if at else ""
        following = nodes[at + 1] if at + 1 < len(nodes) else None
        begins = word in ("select", "from", "where", "group", "having", "union", "with", "create", "join")
        if word == "join":
            begins = before not in _JOIN_HEADS
        elif word in _JOIN_HEADS:
            begins = _word(following) in ("join", "outer", "apply") and before not in _JOIN_HEADS
        elif word == "into":
            begins = not (isinstance(following, Piece) and following.token.kind == "number")
        elif _is_query(node):
            begins = before == "union" or (before == "all" and at > 1 and _word(nodes[at - 2]) == "union")
        if begins and found:
            yield found
            found = []
        found.append(node)
    if found:
        yield found


def _head(nodes: list[Node]) -> tuple[list[Node], list[Node]]:
    """The keywords that begin a clause, and the rest."""
    count = 0
    while count < len(nodes) and _word(nodes[count]) in ("select", "where", "group", "by", "having", "with"):
        count += 1
    return nodes[:count], nodes[count:]


def _split(nodes: list[Node], *separators: str) -> Iterator[list[Node]]:
    """Items of a list, the comma at the end of an item; AND and OR at its beginning, those of BETWEEN and CASE apart."""
    found: list[Node] = []
    between = cases = 0
    for node in nodes:
        word = _word(node)
        between += word == "between"
        cases += (word == "case") - (word == "end")
        if word in separators and not cases and not (word == "and" and between):
            yield found
            found = []
        if word == "and" and between:
            between -= 1
        found.append(node)
        if "," in separators and _mark(node, ",") and not cases:
            yield found
            found = []
    if found:
        yield found


def _is_pattern(nodes: list[Node], at: int) -> bool:
    return isinstance(nodes[at], Group) and at > 0 and _word(nodes[at - 1]) == "match_recognize"


def _pattern_clauses(nodes: list[Node]) -> Iterator[list[Node]]:
    found: list[Node] = []
    for first, node in pairwise([None, *nodes]):
        assert node is not None
        if _word(node) in _PATTERN_CLAUSES and found and _word(first) != "union":
            yield found
            found = []
        found.append(node)
    if found:
        yield found
