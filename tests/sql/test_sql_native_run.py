"""A query's answer does not depend on how, when or in which thread its events were decoded."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from sql_events import at, log_events

from headrace.sql.compile import compile_script
from headrace.sql.decode import Decoder
from headrace.sql.run import Policies, Run

SCRIPT = """
SELECT machine, COUNT(*) AS c, AVG(heat) AS h, MAX(state) AS s, STDEV(heat) AS d INTO windows FROM i TIMESTAMP BY ts
GROUP BY machine, TumblingWindow(second, 10)
SELECT Machine, heat, tags INTO raw FROM i TIMESTAMP BY ts WHERE heat > 50
"""


def events(rows: int) -> list[bytes]:
    rng = random.Random(3)
    out: list[bytes] = []
    for row in range(rows):
        heat = rng.choice(["51.25", "49", "60.333333333333336", "null", "7e1", "1e999", "99.0"])
        machine = rng.choice(['"machine":"a"', '"machine":"b\\u00e9"', '"MACHINE":"c"', '"machine":7', '"other":1'])
        state = rng.choice(["1", "2.5", '"3"', "true"])
        tail = rng.choice(["}", "}", "}", " }\\n", "", "}x"])
        text = f'{{{machine},"heat":{heat},"state":{state},"tags":{{"k":[1]}},"ts":"2025-01-01T00:00:{row % 60:02d}Z"{tail}'
        out.append(text.replace("\\n", "\n").encode())
    return out


def answer(size: int, *, compiled: bool, ahead: bool) -> tuple[list[bytes], list[tuple[str, str, tuple[str, ...]]]]:
    """Every result row, and who was set aside and why."""
    run = Run(compile_script(SCRIPT), policies=Policies(late_arrival_s=-1), on_error="set_aside")
    if not compiled:
        run.decoders = {name: Decoder(one.names, compiled=False) for name, one in run.decoders.items()}
    found, arrivals = events(400), [at(400)] * 400
    batches = [
        log_events(found[first : first + size], arrivals=arrivals[first : first + size], first=first)
        for first in range(0, len(found), size)
    ]
    with ThreadPoolExecutor(2) as pool:
        ready = list(pool.map(lambda batch: run.decode("i", batch), reversed(batches)))[::-1] if ahead else batches
    rows: dict[str, list[bytes]] = {}
    aside: list[tuple[str, str, str]] = []
    for results in [*(run.process("i", batch) for batch in ready), run.finish()]:
        for out in results.rows:
            rows.setdefault(out.output, []).extend(out.bodies())
        for one in results.set_aside:
            ids = one.events.column("_event_id").to_pylist()
            aside += [(event, one.reason, detail) for event, detail in zip(ids, one.details, strict=True)]
    return [*rows["windows"], *rows["raw"]], sorted(aside)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "in turn"])
@pytest.mark.parametrize("size", [1, 7, 400])
def test_the_answer_is_the_same(size: int, ahead: bool, compiled: bool) -> None:
    wanted = answer(400, compiled=False, ahead=False)
    assert len(wanted[0]) > 50
    assert len(wanted[1]) > 50
    assert answer(size, compiled=compiled, ahead=ahead) == wanted


def test_a_run_says_how_it_decodes() -> None:
    run = Run(compile_script("SELECT a INTO o FROM i"))
    assert run.stats()["decoders"] == {"i": run.decoders["i"].kind}
    assert Decoder(["a"], compiled=False).kind == "plain"
