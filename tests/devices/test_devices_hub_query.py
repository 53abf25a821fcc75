"""IoT Hub's query language: expressions, and queries over a registry."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.clock import ManualClock
from headrace.core.errors import UserError
from headrace.devices import hub_expression as expressions
from headrace.devices.commands import DeviceCommands
from headrace.devices.hub_functions import FUNCTIONS, UNDEFINED, walked
from headrace.devices.hub_query import HubQueries, parse
from headrace.devices.model import Draft, ModuleDraft
from headrace.devices.twins import TwinService
from headrace.docstore.contract import DocStore
from headrace.wire.iothub.topics import Identity

ROW: dict[str, Any] = {
    "a": 7,
    "t": "text",
    "yes": True,
    "nil": None,
    "list": [1, {"x": 2}],
    "deep": {"er": {"in": 5, "$version": 3}, "a b": 1},
    "x-y": 9,
}


def evaluated(text: str) -> Any:
    def bind(path: expressions.Path) -> expressions.Value:
        return lambda row: walked(row, path.parts)

    return expressions.compiled(expressions.parse(text), bind)(ROW)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 7),
        ("deep.er.in", 5),
        ("deep.er.$version", 3),
        ("deep.[[a b]]", 1),
        ("[[x-y]]", 9),
        ("list[1].x", 2),
        ("list[2]", UNDEFINED),
        ("gone", UNDEFINED),
        ("A", UNDEFINED),
        ("1 + 2 * 3 - 4 / 2", 5),
        ("(1 + 2) * 3", 9),
        ("10 % 4", 2),
        ("-a", -7),
        ("- -a", 7),
        ("-7 = -a", True),
        ("0x1F", 31),
        (".5", 0.5),
        ("1.5e2", 150),
        ("1 / 0", UNDEFINED),
        ("1 % 0", UNDEFINED),
        ("a + 't'", UNDEFINED),
        ("yes + 1", UNDEFINED),
        ("gone + 1", UNDEFINED),
        (r"'it\'s'", "it's"),
        (r'"\"" ', '"'),
        (r"'\u00e4\n\\'", "ä\n\\"),
        ("TRUE", True),
        ("Null", None),
        ("undefined", UNDEFINED),
        ("a = 7", True),
        ("a != 7", False),
        ("a <> 8", True),
        ("a < 8", True),
        ("a >= 7.0", True),
        ("t = 'text'", True),
        ("t = 'TEXT'", False),
        ("t < 'u'", True),
        ("t = 7", UNDEFINED),
        ("t != 7", UNDEFINED),
        ("t < 7", UNDEFINED),
        ("yes = 1", UNDEFINED),
        ("nil = null", True),
        ("nil != null", False),
        ("a = null", False),
        ("a != null", True),
        ("gone = null", UNDEFINED),
        ("gone != 1", UNDEFINED),
        ("list = list", UNDEFINED),
        ("not yes", False),
        ("not not yes", True),
        ("not gone", UNDEFINED),
        ("not 1", UNDEFINED),
        ("gone or yes", True),
        ("gone and yes", UNDEFINED),
        ("gone and not yes", False),
        ("gone or not yes", UNDEFINED),
        ("yes or yes and not yes", True),
        ("(yes or yes) and not yes", False),
        ("a in [1, 7]", True),
        ("a IN ['7', 1]", False),
        ("a nin [1, 7]", False),
        ("a nin [1]", True),
        ("a in []", False),
        ("gone nin [1]", UNDEFINED),
        ("nil in [null]", True),
        ("abs(-3)", 3),
        ("exp(0)", 1),
        ("power(2, 10)", 1024),
        ("power(10, 999)", UNDEFINED),
        ("square(square(square(1e100)))", UNDEFINED),
        ("square(5)", 25),
        ("ceiling(1.2) + floor(1.8)", 3),
        ("sign(-4)", -1),
        ("sqrt(16)", 4),
        ("sqrt(-1)", UNDEFINED),
        ("abs('1')", UNDEFINED),
        ("as_number('31.5')", 31.5),
        ("as_number('31')", 31),
        ("as_number('x')", UNDEFINED),
        ("as_number('nan')", UNDEFINED),
        ("as_number(7)", 7),
        ("is_defined(gone)", False),
        ("IS_DEFINED(nil)", True),
        ("is_null(nil)", True),
        ("is_null(gone)", False),
        ("is_number(a)", True),
        ("is_number(yes)", False),
        ("is_bool(yes)", True),
        ("is_string(t)", True),
        ("is_array(list)", True),
        ("is_object(deep)", True),
        ("is_primitive(nil)", True),
        ("is_primitive(gone)", False),
        ("is_primitive(list)", False),
        ("concat('a', t, 'b')", "atextb"),
        ("concat('a', 1)", UNDEFINED),
        ("length(t)", 4),
        ("upper(t)", "TEXT"),
        ("lower('ÄB')", "äb"),
        ("substring(t, 1)", "ext"),
        ("substring(t, 1, 2)", "ex"),
        ("substring(t, 9, 2)", ""),
        ("substring(t, -1)", UNDEFINED),
        ("index_of(t, 'x')", 2),
        ("index_of(t, 'z')", -1),
        ("starts_with(t, 'te')", True),
        ("ends_with(t, 'xt')", True),
        ("contains(t, 'ex')", True),
        ("contains(a, 'ex')", UNDEFINED),
    ],
)
def test_an_expression_has_its_value(text: str, value: Any) -> None:
    found = evaluated(text)
    assert found is value if value is UNDEFINED or value is None else found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "position 1"),
        ("a =", "position 4"),
        ("a = = 1", "position 5"),
        ("a b", "position 3"),
        ("(a", "position 3"),
        ("a.", "position 3"),
        ("a[x]", "position 3"),
        ("'open", "position 1"),
        ("a & b", "position 3"),
        ("a = b = c", "position 7"),
        ("and", "position 1"),
        ("in [1]", "position 1"),
        ("a in (1)", "position 6"),
        ("nope(1)", "position 1"),
        ("abs()", "position 1"),
        ("abs(1, 2)", "position 1"),
        ("1e999", "position 1"),
        ("(" * 60 + "1" + ")" * 60, "position"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, place: str) -> None:
    with pytest.raises(UserError, match=place) as caught:
        evaluated(text)
    assert caught.value.code == "query.syntax"


def test_a_misspelt_function_is_told() -> None:
    with pytest.raises(UserError, match="starts_with"):
        evaluated("start_with(t, 'a')")


def test_a_text_is_8192_characters_long_at_most() -> None:
    assert evaluated("1" + "+1" * 4095) == 4096
    assert evaluated("not " * 2000 + "yes") is True
    assert evaluated(" or ".join(["a = 1"] * 900)) is False
    with pytest.raises(UserError, match="8,193 characters"):
        evaluated("1" + "+1" * 4096)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "t",
                "gone",
                "1",
                "-",
                "+",
                "*",
                "=",
                "<",
                "(",
                ")",
                "[",
                "]",
                ",",
                ".",
                "'x'",
                "and",
                "or",
                "not",
                "in",
            ]
            + [f"{name}(" for name in FUNCTIONS]
        ),
        max_size=25,
    )
)
def test_any_text_is_evaluated_or_refused(words: list[str]) -> None:
    with contextlib.suppress(expressions.QueryInvalid):
        evaluated(" ".join(words))


class Fleet:
    """Six devices on two floors, one of them with a module."""

    def __init__(self, docs: DocStore, clock: ManualClock, commands: DeviceCommands) -> None:
        self._docs = docs
        self._twins = TwinService(docs, clock, random_bytes=random.Random(4).randbytes)
        self._commands = commands
        self._queries = HubQueries(docs)

    async def fill(self) -> None:
        for number in range(6):
            id = f"d{number}"
            await self._commands.register(Draft(id=id, status="disabled" if number == 5 else "enabled"))
            identity = Identity(id)
            await self._twins.update(
                identity,
                {"tags": {"floor": number % 2, "name": f"n{number}"}, "properties": {"desired": {"rate": number}}},
            )
            if number != 3:
                await self._twins.report(identity, {"temp": 20 + number, "on": number > 2, "nested": {"x": [number]}})
        await self._commands.register(Draft(id="bare"))
        await self._commands.create_module(ModuleDraft(device="d1", id="m"))
        await self._twins.update(Identity("d1", "m"), {"tags": {"kind": "vision"}})
        await self._docs.put("presence", "d2", {"device": "d2", "module": None, "connected": True, "since": 0})

    async def ids(self, where: str) -> list[str]:
        found = await self._queries.run(f"SELECT * FROM devices WHERE {where}", rows_max=100)
        assert (found.item_type, found.continuation) == ("Twin", "")
        return [row["deviceId"] for row in found.rows]

    async def rows(self, text: str, **more: Any) -> list[dict[str, Any]]:
        return (await self._queries.run(text, **more)).rows

    async def pages(self, text: str, size: int) -> list[int]:
        counts, token = [], ""
        while True:
            page = await self._queries.run(text, rows_max=size, continuation=token)
            counts.append(len(page.rows))
            token = page.continuation
            if not token:
                return counts


@pytest.fixture
async def fleet(docs: DocStore, clock: ManualClock, commands: DeviceCommands) -> Fleet:
    made = Fleet(docs, clock, commands)
    await made.fill()
    return made


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("tags.floor = 1", "d1 d3 d5"),
        ("tags.floor != 1", "d0 d2 d4"),
        ("not (tags.floor = 1)", "d0 d2 d4"),
        ("not is_defined(tags.floor)", "bare"),
        ("properties.reported.temp > 22 and status = 'enabled'", "d4"),
        ("properties.reported.temp > 22 or properties.desired.rate = 3", "d3 d4 d5"),
        ("properties.reported.on", "d4 d5"),
        ("properties.reported.nested.x[0] = 4", "d4"),
        ("properties.desired.$version = 1", "bare"),
        ("is_defined(properties.reported.$metadata.temp)", "d0 d1 d2 d4 d5"),
        ("deviceId = 'd3'", "d3"),
        ("deviceId = 'd3' and tags.floor = 0", ""),
        ("'d3' = deviceId", "d3"),
        ("deviceId = 'nobody'", ""),
        ("deviceId IN ['d0', 'bare', 'x']", "bare d0"),
        ("deviceId > 'd3'", "d4 d5"),
        ("status = 'disabled'", "d5"),
        ("connectionState = 'Connected'", "d2"),
        ("capabilities.iotEdge = true", ""),
        ("authenticationType = 'sas' and deviceId = 'd1'", "d1"),
        ("ends_with(tags.name, '4')", "d4"),
        ("tags.nonsense.deeper = 1", ""),
    ],
)
async def test_a_condition_finds_its_devices(fleet: Fleet, where: str, ids: str) -> None:
    assert await fleet.ids(where) == ids.split()


async def test_columns_are_named_and_missing_ones_left_out(fleet: Fleet) -> None:
    rows = await fleet.rows(
        "SELECT deviceId, properties.reported.temp, properties.desired.rate * 10 AS rate, upper(tags.name)"
        " FROM devices WHERE deviceId IN ['d3', 'd4']"
    )
    assert rows == [
        {"deviceId": "d3", "rate": 30, "$4": "N3"},
        {"deviceId": "d4", "temp": 24, "rate": 40, "$4": "N4"},
    ]


async def test_groups_have_their_aggregates(fleet: Fleet) -> None:
    rows = await fleet.rows(
        "SELECT tags.floor, COUNT() AS n, count(properties.reported.temp) AS known,"
        " AVG(properties.reported.temp) AS mean, sum(properties.desired.rate) AS total,"
        " MIN(tags.name) AS first, max(properties.reported.temp) AS most"
        " FROM devices GROUP BY tags.floor"
    )
    assert sorted(rows, key=lambda row: row.get("floor", -1)) == [
        {"n": 1, "known": 0},
        {"floor": 0, "n": 3, "known": 3, "mean": 22.0, "total": 6, "first": "n0", "most": 24},
        {"floor": 1, "n": 3, "known": 2, "mean": 23.0, "total": 9, "first": "n1", "most": 25},
    ]


async def test_an_aggregate_without_groups_is_one_row(fleet: Fleet) -> None:
    assert await fleet.rows("select count() from devices where tags.floor = 1") == [{"$1": 3}]
    assert await fleet.rows("select count() as n, sum(tags.floor) as s from devices where false") == [{"n": 0}]


async def test_modules_are_asked_like_devices(fleet: Fleet) -> None:
    (row,) = await fleet.rows("SELECT * FROM devices.modules WHERE tags.kind = 'vision'")
    assert (row["deviceId"], row["moduleId"]) == ("d1", "m")
    assert await fleet.rows("SELECT moduleId FROM devices.modules WHERE deviceId = 'd1'") == [{"moduleId": "m"}]


async def test_pages_hold_each_row_once(fleet: Fleet) -> None:
    assert await fleet.pages("SELECT * FROM devices", 3) == [3, 3, 1]
    assert await fleet.pages("SELECT * FROM devices", 7) == [7]
    assert await fleet.pages("SELECT TOP 5 * FROM devices", 3) == [3, 2]
    assert await fleet.pages("SELECT TOP 6 deviceId FROM devices", 3) == [3, 3]
    assert await fleet.pages("SELECT tags.name, count() AS n FROM devices GROUP BY tags.name", 3) == [3, 3, 1]
    assert await fleet.pages("SELECT TOP 2 tags.name, count() AS n FROM devices GROUP BY tags.name", 3) == [2]


async def test_a_strange_continuation_is_refused(fleet: Fleet) -> None:
    for token in ("x", "W10=", "bnVsbA=="):
        with pytest.raises(UserError, match="continuation"):
            await fleet.rows("SELECT * FROM devices", continuation=token)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "SELECT is missing at position 1"),
        ("SELECT *", "FROM is missing at position 9"),
        ("SELECT * FROM twins", "FROM devices or FROM devices.modules"),
        ("SELECT * FROM devices.jobs", "devices.jobs"),
        ("SELECT TOP x * FROM devices", "position 12"),
        ("SELECT TOP 0 * FROM devices", "position 12"),
        ("SELECT * FROM devices WHERE", "position 28"),
        ("SELECT * FROM devices WHERE a = 1 b", "position 35"),
        ("SELECT * FROM devices GROUP tags.a", "BY is missing"),
        ("SELECT * FROM devices GROUP BY tags.a", "cannot be grouped"),
        ("SELECT deviceId, count() FROM devices", "neither grouped"),
        ("SELECT count(*) FROM devices", r"count\(\)"),
        ("SELECT a.x, b.x FROM devices", "two columns"),
        ("SELECT avg() AS a FROM devices", "avg takes one"),
        ("SELECT * FROM devices WHERE count() = 1", "no function 'count'"),
        ("SELECT nope(a) FROM devices", "no function"),
        ("SELECT * FROM devices ORDER BY a", "not expected at position 23"),
    ],
)
def test_a_wrong_query_is_told(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)
