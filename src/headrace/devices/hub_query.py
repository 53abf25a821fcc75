"""IoT Hub's query language over devices and modules: `SELECT ... FROM devices WHERE ... GROUP BY ...`.

A plain query walks the registry by id and stops when its page is full; its continuation is the last id it looked at, so pages
cost what they read. A query with aggregates reads everything once per page. The answer is exact, not an index that lags.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headrace.core.errors import UserError
from headrace.devices import hub_expression as expressions
from headrace.devices.hub_expression import Call, Node, Parser, Path, Value, compiled, condition, tokens, wrong
from headrace.devices.hub_functions import UNDEFINED, walked
from headrace.devices.hub_view import View, Views, just_before
from headrace.devices.model import COLLECTION, MODULES
from headrace.docstore.contract import DocStore

ROWS_MAX = 1000
ROWS_DEFAULT = 100
GROUPS_MAX = 10_000
AGGREGATES = ("count", "avg", "sum", "min", "max")
ItemType = Literal["Twin", "Raw"]


class Item(NamedTuple):
    """One column. `aggregate` is empty for a plain expression; `node` None for count()."""

    name: str
    aggregate: str
    node: Node | None


class Query(NamedTuple):
    source: str  # COLLECTION or MODULES
    items: tuple[Item, ...]  # none: the whole document
    top: int | None
    where: Node | None
    group: tuple[Path, ...]

    @property
    def aggregated(self) -> bool:
        return bool(self.group) or any(item.aggregate for item in self.items)


class Page(NamedTuple):
    rows: list[dict[str, Any]]
    item_type: ItemType
    continuation: str  # empty at the end


def parse(text: str) -> Query:
    """Raises QueryInvalid with the place of what is wrong."""
    parser = Parser(tokens(text))
    if not parser.word("select"):
        raise wrong("SELECT is missing", parser.token.position, "begin with SELECT * FROM devices")
    top = _top(parser)
    items = () if parser.sign("*") else _items(parser)
    if not parser.word("from"):
        raise wrong("FROM is missing", parser.token.position)
    source = _source(parser)
    where = parser.expression() if parser.word("where") else None
    group: list[Path] = []
    if parser.word("group"):
        if not parser.word("by"):
            raise wrong("BY is missing", parser.token.position)
        group = [parser.path()]
        while parser.sign(","):
            group.append(parser.path())
    parser.finish()
    query = Query(source, tuple(items), top, where, tuple(group))
    _check(query)
    return query


class HubQueries:
    """Runs queries. All calls may raise Unavailable."""

    def __init__(self, docs: DocStore) -> None:
        self._views = Views(docs)

    async def run(self, text: str, *, rows_max: int = ROWS_DEFAULT, continuation: str = "") -> Page:
        """One page of at most `rows_max` rows; give `continuation` of the page before. Raises QueryInvalid."""
        query = parse(text)
        after, left = _mark(continuation, query)
        rows_max = min(rows_max, ROWS_MAX)
        if query.aggregated:
            rows = await self._groups(query)
            rows = rows if query.top is None else rows[: query.top]
            start = int(after or 0)
            page = rows[start : start + rows_max]
            more = start + rows_max < len(rows)
            return Page(page, "Raw", _continuation(str(start + rows_max), None) if more else "")
        return await self._page(query, after, rows_max, left)

    async def _page(self, query: Query, after: str, rows_max: int, left: int | None) -> Page:
        item_type: ItemType = "Raw" if query.items else "Twin"
        fits = condition(query.where, _bind) if query.where is not None else None
        columns = [(item.name, compiled(item.node, _bind)) for item in query.items if item.node is not None]
        wanted = rows_max if left is None else min(rows_max, left)
        if not wanted:
            return Page([], item_type, "")
        rows: list[dict[str, Any]] = []
        async for view in self._some(query, after):
            if fits is not None and not fits(view):
                continue
            if len(rows) == wanted:
                left = None if left is None else left - wanted
                return Page(rows, item_type, "" if left == 0 else _continuation(after, left))
            rows.append(_row(columns, view) if query.items else view.json)
            after = view.id
        return Page(rows, item_type, "")

    async def _some(self, query: Query, after: str) -> Any:
        """The views that a query must look at: one where it names the device, else all behind `after`."""
        named = _named_device(query)
        if named is None or query.source != COLLECTION:
            async for view in self._views.every(query.source, after=after):
                yield view
        elif named and named > after:
            for view in await self._views.devices(after=just_before(named), limit=1):
                if view.id == named:
                    yield view

    async def _groups(self, query: Query) -> list[dict[str, Any]]:
        fits = condition(query.where, _bind) if query.where is not None else None
        keys = [_bind(path) for path in query.group]
        groups: dict[str, tuple[list[Any], list[_Total]]] = {}
        sources = [None if item.node is None else compiled(item.node, _bind) for item in query.items]
        async for view in self._some(query, ""):
            if fits is not None and not fits(view):
                continue
            values = [key(view) for key in keys]
            name = msgspec.json.encode([[] if value is UNDEFINED else [value] for value in values]).decode()
            if name not in groups:
                if len(groups) >= GROUPS_MAX:
                    raise UserError(f"more than {GROUPS_MAX:,} groups", hint="use WHERE", code="query.groups")
                groups[name] = (values, [_Total(item.aggregate) for item in query.items])
            for total, source in zip(groups[name][1], sources, strict=True):
                total.add(None if source is None else source(view), counts=source is None)
        if not groups and not query.group:
            groups[""] = ([], [_Total(item.aggregate) for item in query.items])
        return [self._grouped(query, values, totals) for values, totals in groups.values()]

    def _grouped(self, query: Query, values: list[Any], totals: list[_Total]) -> dict[str, Any]:
        own = {path.parts: value for path, value in zip(query.group, values, strict=True)}
        row: dict[str, Any] = {}
        for item, total in zip(query.items, totals, strict=True):
            value = total.value() if item.aggregate else own[item.node.parts] if isinstance(item.node, Path) else None
            if value is not UNDEFINED:
                row[item.name] = value
        return row


class _Total:
    """One aggregate while its group is read. Sums and averages take numbers; least and greatest numbers, or else texts."""

    def __init__(self, aggregate: str) -> None:
        self._aggregate = aggregate
        self._count = 0
        self._sum: float = 0
        self._least: dict[bool, Any] = {}  # is it a text -> value
        self._greatest: dict[bool, Any] = {}

    def add(self, value: Any, *, counts: bool) -> None:
        if self._aggregate == "count":
            self._count += counts or value is not UNDEFINED
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._count += 1
            self._sum += value
            self._extend(False, value)
        elif isinstance(value, str):
            self._extend(True, value)

    def _extend(self, text: bool, value: Any) -> None:
        self._least[text] = min(self._least.get(text, value), value)
        self._greatest[text] = max(self._greatest.get(text, value), value)

    def value(self) -> Any:
        match self._aggregate:
            case "count":
                return self._count
            case "sum":
                return self._sum if self._count else UNDEFINED
            case "avg":
                return self._sum / self._count if self._count else UNDEFINED
            case "min":
                return self._least.get(False, self._least.get(True, UNDEFINED))
            case _:
                return self._greatest.get(False, self._greatest.get(True, UNDEFINED))


def _bind(path: Path) -> Value:
    """Where a path leads in a View; what every twin has is read without building the whole document."""
    root, rest = path.parts[0], path.parts[1:]
    quick: dict[Any, Callable[[View], Any]] = {
        "deviceId": lambda view: view.device.id,
        "status": lambda view: view.device.status,
        "tags": lambda view: view.tags,
        "connectionState": lambda view: "Connected" if view.connection.connected else "Disconnected",
    }
    if root == "properties" and len(rest) > 1 and rest[0] in ("desired", "reported") and not _special(rest[1]):
        section, below = str(rest[0]), rest[1:]
        return lambda view: walked(view.values(section), below)
    if root in quick:
        start = quick[root]
        return (lambda view: walked(start(view), rest)) if rest else start
    parts = path.parts
    return lambda view: walked(view.json, parts)


def _special(part: str | int) -> bool:
    return isinstance(part, str) and part.startswith("$")


def _row(columns: Sequence[tuple[str, Value]], view: View) -> dict[str, Any]:
    """The columns of one row; one that is undefined is left out."""
    found = ((name, value(view)) for name, value in columns)
    return {name: value for name, value in found if value is not UNDEFINED}


def _top(parser: Parser) -> int | None:
    if not parser.word("top"):
        return None
    token = parser.step()
    if token.kind != "number" or not isinstance(token.value, int) or token.value < 1:
        raise wrong("TOP needs a whole number", token.position)
    return token.value


def _items(parser: Parser) -> list[Item]:
    items = [_item(parser, 1)]
    while parser.sign(","):
        items.append(_item(parser, len(items) + 1))
    twice = [item.name for place, item in enumerate(items) if item.name in {other.name for other in items[:place]}]
    if twice:
        raise expressions.QueryInvalid(f"two columns are named {twice[0]!r}", hint="name one with AS")
    return items


def _item(parser: Parser, number: int) -> Item:
    token = parser.token
    if token.kind == "name" and token.value.lower() == "count" and (text := _count(parser)):
        raise wrong(text, token.position, "write count()")
    node = parser.expression()
    aggregate = ""
    name = str(node.parts[-1]) if isinstance(node, Path) else f"${number}"
    inner: Node | None = node
    if isinstance(node, Call) and node.name in AGGREGATES:
        aggregate = node.name
        if len(node.arguments) != 1 and not (aggregate == "count" and not node.arguments):
            raise wrong(f"{aggregate} takes one argument", node.position)
        inner = node.arguments[0] if node.arguments else None
    if parser.word("as"):
        alias = parser.step()
        if alias.kind not in ("name", "quoted"):
            raise wrong("a name is missing after AS", alias.position)
        name = str(alias.value)
    return Item(name, aggregate, inner)


def _count(parser: Parser) -> str:
    """What is wrong with `count(*)`, which other dialects write; empty when it is something else."""
    following = parser.ahead(3)
    return "count(*) is not known here" if [token.value for token in following[1:]] == ["(", "*"] else ""


def _source(parser: Parser) -> str:
    path = parser.path()
    match path.parts:
        case ("devices",):
            return COLLECTION
        case ("devices", "modules"):
            return MODULES
        case _:
            name = ".".join(map(str, path.parts))
            raise wrong(f"there is nothing called {name!r}", path.position, "use FROM devices or FROM devices.modules")


def _check(query: Query) -> None:
    """Raises QueryInvalid for what is well formed and still cannot be run; functions and their arguments included."""
    if query.where is not None:
        compiled(query.where, _bind)
    for item in query.items:
        if item.node is not None:
            compiled(item.node, _bind)
    if not query.aggregated:
        return
    if not query.items:
        raise expressions.QueryInvalid("SELECT * cannot be grouped", hint="name columns and aggregates")
    keys = {path.parts for path in query.group}
    for item in query.items:
        if not item.aggregate and not (isinstance(item.node, Path) and item.node.parts in keys):
            raise expressions.QueryInvalid(
                f"column {item.name!r} is neither grouped by nor an aggregate", hint="add it to GROUP BY"
            )


def _named_device(query: Query) -> str | None:
    """The device of `WHERE deviceId = '...' [AND ...]`."""
    if query.where is None:
        return None
    where = query.where
    parts = where.parts if isinstance(where, expressions.Logical) and where.operator == "and" else (where,)
    for part in parts:
        if isinstance(part, expressions.Compare) and part.operator == "=":
            for one, two in ((part.left, part.right), (part.right, part.left)):
                if isinstance(one, Path) and one.parts == ("deviceId",) and isinstance(two, expressions.Literal):
                    return two.value if isinstance(two.value, str) else None
    return None


def _continuation(after: str, left: int | None) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([after, left])).decode()


def _mark(continuation: str, query: Query) -> tuple[str, int | None]:
    """Where a page begins, and how many rows TOP still allows. Raises QueryInvalid for a token that is none of ours."""
    if not continuation:
        return "", query.top
    try:
        after, left = msgspec.json.decode(base64.urlsafe_b64decode(continuation), type=tuple[str, int | None])
        if query.aggregated:
            int(after)
    except (ValueError, msgspec.MsgspecError) as exc:
        raise expressions.QueryInvalid(
            "the continuation token cannot be read", hint="send back the one of the page before", code="query.token"
        ) from exc
    return after, left
