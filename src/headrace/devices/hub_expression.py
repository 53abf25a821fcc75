"""The expressions of IoT Hub's query and routing languages: text -> tree -> closure.

A missing value is UNDEFINED, which is neither true nor equal to anything: `not (x = 1)` does not hold where x is missing.
Comparing texts with numbers is UNDEFINED too. `compiled` turns a tree into nested closures once, so that a message or a twin
costs a few calls; what a path means is the caller's (`bind`), which is how queries and routes share all of this.
"""

from __future__ import annotations

import math
import operator as operators
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from headrace.core.errors import UserError, nearest
from headrace.devices.hub_functions import FUNCTIONS, UNDEFINED

TEXT_CHARS_MAX = 8192
DEPTH_MAX = 50
LOGICAL: Final = ("and", "or")
COMPARISONS: Final = ("=", "!=", "<>", "<", ">", "<=", ">=")
RESERVED = frozenset({"and", "or", "not", "in", "nin", "as", "from", "where", "group", "by", "select", "top"})
CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "undefined": UNDEFINED}


class QueryInvalid(UserError):
    """A text that is no query or condition; the message says where. IoT Hub's 400004."""

    code = "query.syntax"


class Literal(NamedTuple):
    value: Any


class Path(NamedTuple):
    """`tags.floor`, `$body.list[0]`, `configurations.[[id]].status`: names and array indices."""

    parts: tuple[str | int, ...]
    position: int  # where it stands in the text, from 1


class Call(NamedTuple):
    name: str  # lower case
    arguments: tuple[Node, ...]
    position: int


class Not(NamedTuple):
    inner: Node


class Negative(NamedTuple):
    inner: Node


class Logical(NamedTuple):
    """All (`and`) or any (`or`) of the parts: flat, so that a long chain is no deep tree."""

    operator: str
    parts: tuple[Node, ...]


class Compare(NamedTuple):
    operator: str
    left: Node
    right: Node


class Within(NamedTuple):
    subject: Node
    options: tuple[Node, ...]
    negated: bool


class Chain(NamedTuple):
    """`first op x op y`, from left to right, of one precedence."""

    first: Node
    steps: tuple[tuple[str, Node], ...]


Node: TypeAlias = Literal | Path | Call | Not | Negative | Logical | Compare | Within | Chain
Value: TypeAlias = Callable[[Any], Any]
"""What a tree compiles to: from whatever the caller's rows are to a JSON value or UNDEFINED."""
Bind: TypeAlias = Callable[[Path], Value]


class Token(NamedTuple):
    kind: str  # name, text, number, sign, end
    value: Any
    position: int  # from 1


_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<quoted>\[\[(?:(?!\]\]).)+\]\])
    |(?P<name>\$[A-Za-z_][A-Za-z0-9_]*(?:-[A-Za-z][A-Za-z0-9_]*)*|[A-Za-z_][A-Za-z0-9_$]*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<sign><>|!=|<=|>=|[-+*/%=<>().,\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_ALIKE = frozenset({str, int, float, bool})
"""Types whose values compare among themselves: asked first, because it is nearly always so."""
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def tokens(text: str) -> list[Token]:
    """The words of a text, ended by one of kind `end`. Raises QueryInvalid."""
    if len(text) > TEXT_CHARS_MAX:
        raise QueryInvalid(
            f"a query of {len(text):,} characters", hint=f"use at most {TEXT_CHARS_MAX:,}", code="query.length"
        )
    found: list[Token] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise wrong(f"{text[place : place + 10]!r} is not understood", place + 1)
        kind, raw = str(match.lastgroup), match.group()
        if kind == "quoted":
            found.append(Token("quoted", raw[2:-2], place + 1))
        elif kind == "text":
            found.append(Token("text", _ESCAPE.sub(_unescaped, raw[1:-1]), place + 1))
        elif kind == "number":
            found.append(Token("number", _number(raw, place + 1), place + 1))
        elif kind != "space":
            found.append(Token(kind, raw, place + 1))
        place = match.end()
    return [*found, Token("end", "", len(text) + 1)]


def wrong(what: str, position: int, hint: str = "") -> QueryInvalid:
    return QueryInvalid(
        f"{what} at position {position}", hint=hint or "it reads like: SELECT * FROM devices WHERE tags.floor = 1"
    )


def parse(text: str) -> Node:
    """A whole text as one expression. Raises QueryInvalid."""
    parser = Parser(tokens(text))
    node = parser.expression()
    parser.finish()
    return node


class Parser:
    """Recursive descent over tokens; `devices.hub_query` reads its clauses with the same one."""

    def __init__(self, found: Sequence[Token]) -> None:
        self._tokens = found
        self._next = 0
        self._depth = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._next]

    def ahead(self, count: int) -> Sequence[Token]:
        """This token and those behind it, `count` at most."""
        return self._tokens[self._next : self._next + count]

    def step(self) -> Token:
        token = self.token
        self._next += token.kind != "end"
        return token

    def word(self, *wanted: str) -> str:
        """The keyword that stands here in lower case, stepping over it; empty when it is none of `wanted`."""
        token = self.token
        if token.kind == "name" and token.value.lower() in wanted:
            return str(self.step().value).lower()
        return ""

    def sign(self, *wanted: str) -> str:
        token = self.token
        return str(self.step().value) if token.kind == "sign" and token.value in wanted else ""

    def expect(self, sign: str) -> None:
        if not self.sign(sign):
            raise wrong(f"{sign!r} is missing", self.token.position)

    def finish(self) -> None:
        if self.token.kind != "end":
            raise wrong(f"{str(self.token.value)[:40]!r} is not expected", self.token.position)

    def expression(self) -> Node:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise wrong(f"more than {DEPTH_MAX} levels", self.token.position, "use fewer parentheses")
        node = self._joined("or", lambda: self._joined("and", self._negation))
        self._depth -= 1
        return node

    def path(self) -> Path:
        """A path. Raises QueryInvalid where none stands."""
        first = self.step()
        if first.kind not in ("name", "quoted") or (first.kind == "name" and first.value.lower() in RESERVED):
            raise wrong("a name is missing", first.position)
        parts: list[str | int] = [first.value]
        while True:
            if self.sign("."):
                part = self.step()
                if part.kind not in ("name", "quoted"):
                    raise wrong("a name is missing after '.'", part.position)
                parts.append(part.value)
            elif self.sign("["):
                index = self.step()
                if index.kind != "number" or not isinstance(index.value, int):
                    raise wrong("an index is missing after '['", index.position)
                self.expect("]")
                parts.append(index.value)
            else:
                return Path(tuple(parts), first.position)

    def _joined(self, operator: str, part: Callable[[], Node]) -> Node:
        parts = [part()]
        while self.word(operator):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Logical(operator, tuple(parts))

    def _negation(self) -> Node:
        negated = False
        while self.word("not"):
            negated = not negated
        node = self._comparison()
        return Not(node) if negated else node

    def _comparison(self) -> Node:
        left = self._sum()
        if operator := self.sign(*COMPARISONS):
            return Compare("!=" if operator == "<>" else operator, left, self._sum())
        if operator := self.word("in", "nin"):
            self.expect("[")
            options = [] if self.sign("]") else list(self._list("]"))
            return Within(left, tuple(options), operator == "nin")
        return left

    def _sum(self) -> Node:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/", "%"), self._unary))

    def _chain(self, operators: tuple[str, ...], part: Callable[[], Node]) -> Node:
        first, steps = part(), []
        while operator := self.sign(*operators):
            steps.append((operator, part()))
        return Chain(first, tuple(steps)) if steps else first

    def _unary(self) -> Node:
        negative = False
        while sign := self.sign("-", "+"):
            negative ^= sign == "-"
        node = self._primary()
        if negative:
            return Literal(-node.value) if isinstance(node, Literal) and _is_number(node.value) else Negative(node)
        return node

    def _primary(self) -> Node:
        token = self.token
        if token.kind in ("text", "number"):
            return Literal(self.step().value)
        if self.sign("("):
            node = self.expression()
            self.expect(")")
            return node
        if token.kind == "name":
            if token.value.lower() in CONSTANTS:
                return Literal(CONSTANTS[self.step().value.lower()])
            following = self._tokens[self._next + 1]
            if following.kind == "sign" and following.value == "(":
                return self._call()
        if token.kind == "end":
            raise wrong("the expression ends too early", token.position)
        return self.path()

    def _call(self) -> Call:
        token = self.step()
        self.expect("(")
        arguments = [] if self.sign(")") else list(self._list(")"))
        return Call(str(token.value).lower(), tuple(arguments), token.position)

    def _list(self, end: str) -> Iterator[Node]:
        while True:
            yield self.expression()
            if not self.sign(","):
                self.expect(end)
                return


def paths(node: Node) -> Iterator[Path]:
    """Every path in a tree: what must be looked up to evaluate it."""
    match node:
        case Path():
            yield node
        case Call(arguments=parts) | Logical(parts=parts):
            for part in parts:
                yield from paths(part)
        case Not(inner=inner) | Negative(inner=inner):
            yield from paths(inner)
        case Compare(left=left, right=right):
            yield from paths(left)
            yield from paths(right)
        case Within(subject=subject, options=options):
            for part in (subject, *options):
                yield from paths(part)
        case Chain(first=first, steps=steps):
            for part in (first, *(part for _, part in steps)):
                yield from paths(part)


def condition(node: Node, bind: Bind) -> Callable[[Any], bool]:
    """Whether a row fits: true only where the expression is true, not where it is undefined. Raises QueryInvalid."""
    value = compiled(node, bind)
    return lambda row: value(row) is True


def compiled(node: Node, bind: Bind) -> Value:
    """A closure over rows. `bind` says what a path means and may refuse it. Raises QueryInvalid for an unknown function or a
    wrong number of arguments."""
    match node:
        case Literal(value=constant):
            return lambda row: constant
        case Path():
            return bind(node)
        case Call():
            return _compiled_call(node, bind)
        case Not(inner=inner):
            return _not(compiled(inner, bind))
        case Negative(inner=inner):
            return _arithmetic("-", lambda row: 0, compiled(inner, bind))
        case Logical(operator=operator, parts=parts):
            return _logical(operator == "and", [compiled(part, bind) for part in parts])
        case Compare(operator=operator, left=left, right=right):
            return _compared(operator, compiled(left, bind), compiled(right, bind))
        case Within(subject=subject, options=options, negated=negated):
            return _within(compiled(subject, bind), [compiled(option, bind) for option in options], negated)
        case Chain(first=first, steps=steps):
            return _chained(compiled(first, bind), [(operator, compiled(part, bind)) for operator, part in steps])


def equal(left: Any, right: Any) -> Any:
    """True, False, or UNDEFINED where the two cannot be compared. null compares with everything that exists."""
    if (kind := type(left)) is type(right) and kind in _ALIKE:
        return left == right
    if left is UNDEFINED or right is UNDEFINED:
        return UNDEFINED
    if left is None or right is None:
        return left is right
    return left == right if _kind(left) == _kind(right) != "" else UNDEFINED


def _compiled_call(node: Call, bind: Bind) -> Value:
    function = FUNCTIONS.get(node.name)
    if function is None:
        raise wrong(f"there is no function {node.name!r}", node.position, nearest(node.name, FUNCTIONS))
    least, most, work = function
    if not least <= len(node.arguments) <= most:
        count = f"{least}" if least == most else f"{least} to {most}"
        raise wrong(f"{node.name} takes {count} arguments, not {len(node.arguments)},", node.position)
    arguments = [compiled(argument, bind) for argument in node.arguments]
    if len(arguments) == 1:
        only = arguments[0]
        return lambda row: work(only(row))
    return lambda row: work(*[argument(row) for argument in arguments])


def _not(inner: Value) -> Value:
    def value(row: Any) -> Any:
        found = inner(row)
        return not found if isinstance(found, bool) else UNDEFINED

    return value


def _logical(every: bool, parts: list[Value]) -> Value:
    """Three-valued: one part that decides is enough, whatever the others are."""

    def value(row: Any) -> Any:
        answer: Any = every
        for part in parts:
            found = part(row)
            if found is not True and found is not False:
                answer = UNDEFINED
            elif found is not every:
                return found
        return answer

    return value


def _compared(operator: str, left: Value, right: Value) -> Value:
    if operator == "=":
        return lambda row: equal(left(row), right(row))
    if operator == "!=":

        def differ(row: Any) -> Any:
            same = equal(left(row), right(row))
            return same if same is UNDEFINED else not same

        return differ

    compares = _ORDERS[operator]

    def ordered(row: Any) -> Any:
        one, two = left(row), right(row)
        if ((kind := type(one)) is type(two) and kind in _ALIKE) or _kind(one) == _kind(two) != "":
            return compares(one, two)
        return UNDEFINED

    return ordered


def _within(subject: Value, options: list[Value], negated: bool) -> Value:
    def value(row: Any) -> Any:
        found = subject(row)
        if found is UNDEFINED:
            return UNDEFINED
        return any(equal(found, option(row)) is True for option in options) is not negated

    return value


def _chained(first: Value, steps: list[tuple[str, Value]]) -> Value:
    if len(steps) == 1:
        return _arithmetic(steps[0][0], first, steps[0][1])

    def value(row: Any) -> Any:
        total = first(row)
        for operator, part in steps:
            total = _calculated(operator, total, part(row))
        return total

    return value


def _arithmetic(operator: str, left: Value, right: Value) -> Value:
    return lambda row: _calculated(operator, left(row), right(row))


def _calculated(operator: str, left: Any, right: Any) -> Any:
    """Numbers only; what has no finite result is UNDEFINED."""
    if not (_is_number(left) and _is_number(right)):
        return UNDEFINED
    try:
        match operator:
            case "+":
                result = left + right
            case "-":
                result = left - right
            case "*":
                result = left * right
            case "/":
                result = left / right
            case _:
                result = math.fmod(left, right)
        if isinstance(result, int):
            return result if abs(result) < 2**63 else float(result)
        return result if math.isfinite(result) else UNDEFINED
    except (ZeroDivisionError, OverflowError, ValueError):
        return UNDEFINED


def _kind(value: Any) -> str:
    """What may be compared with what; empty for what cannot be compared at all."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(raw: str, position: int) -> int | float:
    if raw[:2].lower() == "0x":
        value: int | float = int(raw, 16)
    elif raw.isdigit():
        value = int(raw) if len(raw) < 20 else float(raw)
    else:
        value = float(raw)
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong("a number too large", position)
    return value if isinstance(value, float) or value < 2**63 else float(value)


def _unescaped(match: re.Match[str]) -> str:
    found = match[1]
    if len(found) == 5:
        return chr(int(found[1:], 16))
    return _ESCAPES.get(found, found)
