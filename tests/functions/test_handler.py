"""User code becomes a Function, or a sentence that says what is wrong with it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from function_bench import Bench, events

from headrace.core.errors import UserError
from headrace.core.flow import Outcome, SetAside
from headrace.functions.handler import HandlerFailed, as_function, load_handler


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


async def test_a_plain_function_gets_the_batch(folder: Path) -> None:
    write(folder, "plain_fn", "seen = []\ndef handle(batch, extra=None):\n    seen.append((batch.num_rows, extra))\n")
    function = load_handler("plain_fn:handle", folder)
    await function.open()
    assert await function.process(events(0, 3), 1) == Outcome(3)
    await function.close()
    import plain_fn  # type: ignore[import-not-found]

    assert plain_fn.seen == [(3, None)]


async def test_an_async_function_is_awaited() -> None:
    async def handle(batch: pa.RecordBatch) -> Outcome:
        return Outcome(batch.num_rows - 1, (SetAside(0, "dull"),))

    function = as_function(handle, "here:handle")
    assert await function.process(events(0, 3), 1) == Outcome(2, (SetAside(0, "dull"),))
    await function.close()


async def test_a_class_is_opened_told_the_epoch_and_closed() -> None:
    told: list[Any] = []

    class Store:
        def open(self) -> None:
            told.append("open")

        def process(self, batch: pa.RecordBatch, epoch: int) -> None:
            told.append(epoch)

        async def close(self) -> None:
            told.append("close")

    function = as_function(Store, "here:Store")
    await function.open()
    await function.process(events(0, 1), 7)
    await function.close()
    assert told == ["open", 7, "close"]


async def test_what_user_code_raises_names_the_handler() -> None:
    def handle(batch: pa.RecordBatch) -> None:
        raise KeyError("temperature")

    function = as_function(handle, "cleaning:handle")
    with pytest.raises(HandlerFailed, match="cleaning:handle raised KeyError: 'temperature'"):
        await function.process(events(0, 1), 1)
    await function.close()


async def test_a_call_that_timed_out_ends_before_the_next_begins(bench: Bench, passing_time: None) -> None:
    gate, running, most, calls = threading.Event(), 0, 0, 0

    def handle(batch: pa.RecordBatch) -> None:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        if calls == 1:
            gate.wait(0.2)
        running -= 1

    await bench.log.append("telemetry", events(0, 5))
    await bench.drain(bench.runner(as_function(handle, "slow:handle"), timeout_s=0.1, retries_max=None))
    assert (calls, most) == (2, 1)
    assert bench.ledger.sums() == (5, 5, {})


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("cleaning", "not `module:name`"),
        ("cleanin:handle", "did you mean 'cleaning'"),
        ("cleaning:handel", "did you mean 'handle'"),
        ("cleaning:LIMIT", "is a int"),
        ("broken:handle", r"fails when it is imported: ZeroDivisionError.*broken\.py:1"),
        ("needy:handle", "imports 'surely_not_installed', which is not installed"),
    ],
)
def test_a_wrong_handler_is_a_clear_error(folder: Path, handler: str, message: str) -> None:
    write(folder, "cleaning", "LIMIT = 3\ndef handle(batch):\n    pass\n")
    write(folder, "broken", "1 / 0\n")
    write(folder, "needy", "import surely_not_installed\n")
    with pytest.raises(UserError, match=message):
        load_handler(handler, folder)
