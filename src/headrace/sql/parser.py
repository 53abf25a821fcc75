"""Expressions: tokens in, syntax tree out, by recursive descent in the order of precedence.

No word is reserved everywhere: `timestamp` is a column unless BY follows, `left` a function where `(` follows.
"""

from __future__ import annotations

import math
from typing import NoReturn

from headrace.sql.dialect import Token, tokenize
from headrace.sql.errors import SqlError
from headrace.sql.tree import (
    Between,
    Binary,
    Call,
    Case,
    Cast,
    Duration,
    Field,
    In,
    IsNull,
    Like,
    Literal,
    Name,
    Node,
    OrderItem,
    Over,
    Star,
    Unary,
    children,
)
from headrace.sql.units import DURATION_MAX, PARTS, TICKS

_RESERVED_WORDS = """
select from where group having into union join on inner cross full right with as and or not case when then else end is in
like between create over match_recognize order null
"""
RESERVED = frozenset(_RESERVED_WORDS.split())
TYPES = ("bigint", "float", "nvarchar", "datetime", "bit", "record", "array")
DEPTH_MAX = 40  # of parentheses and calls: about ten Python frames each
HEIGHT_MAX = 120  # of the tree: chains like a + a + a grow it without nesting
INT_MAX = (1 << 63) - 1


class ExpressionParser:
    """A cursor over the tokens of a script, and the grammar of expressions."""

    def __init__(self, text: str) -> None:
        self.tokens = tokenize(text)
        self.at = 0
        self.depth = 0

    # -- cursor

    @property
    def current(self) -> Token:
        return self.tokens[self.at]

    def ahead(self, steps: int = 1) -> Token:
        return self.tokens[min(self.at + steps, len(self.tokens) - 1)]

    def advance(self) -> Token:
        token = self.current
        if token.kind != "end":
            self.at += 1
        return token

    def is_word(self, *words: str, steps: int = 0) -> bool:
        token = self.ahead(steps)
        return token.kind == "word" and token.text.lower() in words

    def is_mark(self, *marks: str, steps: int = 0) -> bool:
        token = self.ahead(steps)
        return token.kind == "mark" and token.text in marks

    def take_word(self, *words: str) -> bool:
        if self.is_word(*words):
            self.at += 1
            return True
        return False

    def take_mark(self, mark: str) -> bool:
        if self.is_mark(mark):
            self.at += 1
            return True
        return False

    def expect_mark(self, mark: str, after: str) -> Token:
        if not self.is_mark(mark):
            self.fail(f"expected {mark!r} {after}, found {self.current.text!r}")
        return self.advance()

    def expect_word(self, word: str, after: str) -> Token:
        if not self.is_word(word):
            self.fail(f"expected {word.upper()} {after}, found {self.current.text!r}")
        return self.advance()

    def name(self, what: str) -> Token:
        token = self.current
        if token.kind != "name" and (token.kind != "word" or token.text.lower() in RESERVED):
            self.fail(f"expected {what}, found {token.text!r}")
        return self.advance()

    def fail(self, message: str, at: Token | None = None, *, hint: str = "", code: str = "") -> NoReturn:
        token = at or self.current
        raise SqlError(message, line=token.line, column=token.column, text=token.text, hint=hint, code=code)

    # -- precedence, loosest first

    def expression(self) -> Node:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self.fail(f"expressions are nested more than {DEPTH_MAX} deep", hint="split it over steps of WITH")
        try:
            node = self._or()
        finally:
            self.depth -= 1
        if self.depth == 0 and height(node) > HEIGHT_MAX:
            self.fail(f"an expression chains more than {HEIGHT_MAX} operators", node.at, hint="use steps of WITH")
        return node

    def _or(self) -> Node:
        parts = [self._and()]
        while self.take_word("or"):
            parts.append(self._and())
        return _balanced("or", parts)

    def _and(self) -> Node:
        parts = [self._not()]
        while self.take_word("and"):
            parts.append(self._not())
        return _balanced("and", parts)

    def _not(self) -> Node:
        nots: list[Token] = []
        while self.is_word("not"):
            nots.append(self.advance())
        node = self._comparison()
        for at in reversed(nots):
            node = Unary(at, "not", node)
        return node

    _COMPARE = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "!<": ">=", "!>": "<="}  # noqa: RUF012

    def _comparison(self) -> Node:
        left = self._sum()
        while True:
            token = self.current
            if token.kind == "mark" and token.text in self._COMPARE:
                self.advance()
                left = Binary(token, self._COMPARE[token.text], left, self._sum())
            elif self.is_word("is"):
                self.advance()
                negated = self.take_word("not")
                self.expect_word("null", "after IS")
                left = IsNull(token, left, negated)
            elif self.is_word("between", "in", "like") or (
                self.is_word("not") and self.is_word("between", "in", "like", steps=1)
            ):
                left = self._predicate(left)
            else:
                return left

    def _predicate(self, left: Node) -> Node:
        at = self.current
        negated = self.take_word("not")
        if self.take_word("between"):
            low = self._sum()
            self.expect_word("and", "in BETWEEN")
            return Between(at, left, low, self._sum(), negated)
        if self.take_word("like"):
            return Like(at, left, self._sum(), negated)
        self.advance()
        self.expect_mark("(", "after IN")
        items = self._list(")")
        if not items:
            self.fail("IN needs at least one value", at)
        return In(at, left, items, negated)

    def _sum(self) -> Node:
        left = self._product()
        while self.is_mark("+", "-", "&", "|", "^"):
            at = self.advance()
            left = Binary(at, at.text, left, self._product())
        return left

    def _product(self) -> Node:
        left = self._unary()
        while self.is_mark("*", "/", "%"):
            at = self.advance()
            left = Binary(at, at.text, left, self._unary())
        return left

    def _unary(self) -> Node:
        signs: list[Token] = []
        while self.is_mark("-", "+", "~"):
            signs.append(self.advance())
        if len(signs) > DEPTH_MAX:
            self.fail(f"more than {DEPTH_MAX} signs in a row", signs[0])
        node = self._path()
        for at in reversed(signs):
            if at.text == "-" and isinstance(node, Literal) and isinstance(node.value, int | float):
                node = Literal(at, -node.value)
            else:
                node = Unary(at, at.text, node)
        if isinstance(node, Literal) and isinstance(node.value, int) and not -INT_MAX - 1 <= node.value <= INT_MAX:
            self.fail(f"{node.value} does not fit a bigint", node.at)
        return node

    def _path(self) -> Node:
        node = self._primary()
        while self.is_mark("."):
            at = self.advance()
            if self.is_mark("*") and isinstance(node, Name):
                self.advance()
                return Star(node.at, node.parts)
            part = self._part(at)
            node = Name(node.at, (*node.parts, part)) if isinstance(node, Name) else Field(node.at, node, part)
        return node

    def _part(self, dot: Token) -> str:
        if self.current.kind not in ("word", "name"):
            self.fail(f"expected a name after '.', found {self.current.text!r}", dot)
        return self.advance().text

    # -- operands

    def _primary(self) -> Node:
        token = self.current
        if token.kind == "number" or (self.is_mark(".") and self.ahead().kind == "number"):
            return self._number()
        if token.kind == "text":
            self.advance()
            return Literal(token, token.text)
        if self.take_mark("("):
            inner = self.expression()
            self.expect_mark(")", "after the expression")
            return inner
        if self.is_mark("*"):
            self.advance()
            return Star(token)
        if token.kind == "word":
            return self._word(token)
        if token.kind != "name":
            self.fail(f"expected an expression, found {token.text!r}")
        self.advance()
        return Name(token, (token.text,))

    def _number(self) -> Node:
        token = self.advance()
        text = token.text
        if text == ".":
            text = "." + self.advance().text
        try:
            value = float(text) if any(char in text for char in ".eE") else int(text)
        except ValueError:
            self.fail(f"{text[:40]!r} is not a number", token)
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(f"{text[:40]} does not fit a float", token)
        return Literal(token, value)

    def _word(self, token: Token) -> Node:
        word = token.text.lower()
        if word == "null":
            self.advance()
            return Literal(token, None)
        if word == "case":
            return self._case()
        if word in ("cast", "try_cast") and self.is_mark("(", steps=1):
            return self._cast()
        called = self._call_name()
        if called:
            return self._call(token, called)
        if word in RESERVED:
            self.fail(f"expected an expression, found {token.text!r}")
        self.advance()
        return Name(token, (token.text,))

    def _call_name(self) -> str:
        """`name` or `prefix.name` where a `(` follows; the cursor then stands on the `(`. Empty where it is no call."""
        if self.is_mark("(", steps=1):
            name = self.current.text.lower()
            if name in RESERVED - {"right", "left"}:
                return ""
            self.at += 1
            return name
        if self.is_mark(".", steps=1) and self.ahead(2).kind == "word":
            name = f"{self.current.text}.{self.ahead(2).text}".lower()
            if self.is_mark("(", steps=3):
                self.at += 3
                return name
            if name == "system.timestamp":
                self.at += 3
                return name
        return ""

    def _call(self, at: Token, name: str) -> Node:
        args: tuple[Node, ...] = ()
        distinct = False
        if self.take_mark("("):
            distinct = self.take_word("distinct")
            if not distinct and self.is_word("all") and not self.is_mark(")", ",", ".", steps=1):
                self.advance()
            args = self._list(")")
        over = self._over() if self.is_word("over") and self.is_mark("(", steps=1) else None
        return Call(at, name, args, distinct, over)

    def _list(self, closing: str) -> tuple[Node, ...]:
        items: list[Node] = []
        while not self.take_mark(closing):
            if items:
                self.expect_mark(",", "between arguments")
            items.append(self.expression())
        return tuple(items)

    def _over(self) -> Over:
        at = self.advance()
        self.expect_mark("(", "after OVER")
        partition: tuple[Node, ...] = ()
        order: tuple[OrderItem, ...] = ()
        limit: Duration | None = None
        when: Node | None = None
        if self.take_word("partition"):
            self.expect_word("by", "after PARTITION")
            partition = self.expressions()
        if self.take_word("order"):
            self.expect_word("by", "after ORDER")
            order = self._order()
        if self.take_word("limit"):
            limit = self.duration()
        if self.take_word("when"):
            when = self.expression()
        self.expect_mark(")", "at the end of OVER (...)")
        return Over(at, partition, order, limit, when)

    def expressions(self) -> tuple[Node, ...]:
        items = [self.expression()]
        while self.take_mark(","):
            items.append(self.expression())
        return tuple(items)

    def _order(self) -> tuple[OrderItem, ...]:
        items: list[OrderItem] = []
        while not items or self.take_mark(","):
            at = self.current
            of = self.expression()
            descending = self.take_word("desc")
            if not descending:
                self.take_word("asc")
            items.append(OrderItem(at, of, descending))
        return tuple(items)

    def duration(self) -> Duration:
        at = self.expect_word("duration", "after LIMIT")
        self.expect_mark("(", "after DURATION")
        return self.length(self._list(")"), at)

    def length(self, args: tuple[Node, ...], at: Token, *, signed: bool = False) -> Duration:
        """`unit, n` as ticks. Sizes are positive and at most 7 days; an offset (`signed`) may be negative."""
        if len(args) != 2 or not isinstance(args[0], Name):
            self.fail("expected a unit and a number, as in (second, 10)", at)
        unit = PARTS.get(args[0].parts[-1].lower(), "")
        if unit not in TICKS:
            self.fail(
                f"{args[0].parts[-1]!r} is not a unit of duration",
                args[0].at,
                hint="day, hour, minute, second, millisecond or microsecond",
            )
        count = args[1].value if isinstance(args[1], Literal) else None
        if not isinstance(count, int) or (count <= 0 and not signed):
            self.fail("the length must be a positive whole number", args[1].at)
        ticks = count * TICKS[unit]
        if abs(ticks) > DURATION_MAX:
            self.fail(f"{count} {unit}s is longer than 7 days", args[1].at, hint="at most 7 days")
        return Duration(at, ticks, f"{count} {unit}" + ("" if count == 1 else "s"))

    def _case(self) -> Node:
        at = self.advance()
        operand = None if self.is_word("when") else self.expression()
        whens: list[tuple[Node, Node]] = []
        while self.take_word("when"):
            test = self.expression()
            self.expect_word("then", "after WHEN")
            whens.append((test, self.expression()))
        if not whens:
            self.fail("CASE needs at least one WHEN", at)
        otherwise = self.expression() if self.take_word("else") else None
        self.expect_word("end", "at the end of CASE")
        return Case(at, operand, tuple(whens), otherwise)

    def _cast(self) -> Node:
        at = self.advance()
        self.expect_mark("(", "after CAST")
        of = self.expression()
        self.expect_word("as", "in CAST")
        kind = self.type_name()
        self.expect_mark(")", "at the end of CAST")
        return Cast(at, of, kind, at.text.lower() == "try_cast")

    def type_name(self) -> str:
        token = self.advance()
        kind = token.text.lower()
        if token.kind != "word" or kind not in TYPES:
            self.fail(
                f"{token.text!r} is not a type", token, hint="types: " + ", ".join(TYPES[:2]) + ", nvarchar(max), …"
            )
        if kind == "nvarchar" and self.take_mark("("):
            if not self.take_word("max"):
                self.fail("only nvarchar(max) exists", token)
            self.expect_mark(")", "after max")
        return kind


def _balanced(op: str, parts: list[Node]) -> Node:
    """Conditions joined as a low tree, so that hundreds of them are no deep recursion."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return Binary(parts[0].at, op, _balanced(op, parts[:middle]), _balanced(op, parts[middle:]))


def height(node: Node) -> int:
    """How many nodes stand above one another, without recursion."""
    level, found = 0, [node]
    while found:
        level += 1
        found = [child for one in found for child in children(one)]
    return level
