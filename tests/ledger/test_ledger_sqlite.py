import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.core.errors import UserError
from headrace.core.flow import LedgerEntry
from headrace.ledger.sqlite import SqliteLedger
from headrace.ledger.totals import missing, total


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite", epochs_kept=5)
    yield ledger
    await ledger.close()


def entry(epoch: int, rows: int = 10, *, out: int | None = None, partition: int = 0, **set_aside: int) -> LedgerEntry:
    """Epoch n of a stage that reads `rows` rows an epoch."""
    kept = rows - sum(set_aside.values()) if out is None else out
    return LedgerEntry("lake", "telemetry", partition, epoch, epoch * rows, (epoch + 1) * rows, kept, set_aside)


async def test_entries_are_summed_by_stage_stream_and_partition(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0, late=2), entry(0, partition=1), entry(1, late=1, poison=3)])
    first, second = await ledger.totals()
    assert first == LedgerEntry("lake", "telemetry", 0, 1, 0, 20, 14, {"late": 3, "poison": 3})
    assert second == LedgerEntry("lake", "telemetry", 1, 0, 0, 10, 10, {})
    assert (missing(first), missing(second)) == (0, 0)


async def test_an_epoch_written_again_replaces_the_first(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0, out=3), entry(1)])
    await ledger.write([entry(0)])
    await ledger.write([entry(0)])
    assert await ledger.totals() == [entry(0)._replace(epoch=1, offset_to=20, rows_out=20)]


async def test_an_epoch_that_was_never_written_unbalances(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0), entry(2)])
    assert missing((await ledger.totals())[0]) == 10


async def test_an_epoch_done_twice_under_two_numbers_unbalances(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0), entry(0)._replace(epoch=1)])
    assert missing((await ledger.totals())[0]) == -10


async def test_rolling_up_changes_no_sum(ledger: SqliteLedger, tmp_path: Path) -> None:
    seed = 7
    rng = random.Random(seed)
    written: list[LedgerEntry] = []
    for epoch in range(200):
        rows = [entry(epoch, late=rng.randrange(5), partition=p) for p in range(2)]
        written += rows
        await ledger.write(rows)
        if epoch % 20 == 0:
            assert await ledger.totals() == total(written)
    assert await ledger.totals() == total(written)
    standing = await ledger.entries("lake", 1000)
    assert len(standing) <= 2 * 2 * 5
    assert {one.epoch for one in standing} >= {199, 198, 197, 196, 195}


async def test_the_newest_epochs_can_be_replaced_and_settled_ones_cannot(ledger: SqliteLedger) -> None:
    await ledger.write([entry(epoch) for epoch in range(30)])
    await ledger.write([entry(30)])
    for epoch in range(31, 50):
        await ledger.write([entry(epoch)])
    await ledger.write([entry(49, out=0), entry(0, out=0)])
    (found,) = await ledger.totals()
    assert found.rows_out == 490
    assert (found.offset_from, found.offset_to) == (0, 500)


async def test_a_restarted_writer_rolls_up_too(tmp_path: Path) -> None:
    for epoch in range(60):
        ledger = SqliteLedger(tmp_path / "ledger.sqlite", epochs_kept=5)
        await ledger.write([entry(epoch)])
        if epoch == 59:
            assert len(await ledger.entries("lake", 100)) <= 10
            assert (await ledger.totals())[0].rows_out == 600
        await ledger.close()


async def test_entries_are_listed_newest_first(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0), entry(1), entry(2)])
    assert [found.epoch for found in await ledger.entries("lake", 2)] == [2, 1]
    assert await ledger.entries("other", 2) == []


async def test_forgetting_a_stage_leaves_the_others(ledger: SqliteLedger) -> None:
    await ledger.write([entry(0), entry(0)._replace(stage="entities")])
    await ledger.forget("lake")
    assert [found.stage for found in await ledger.totals()] == ["entities"]


async def test_negative_counts_are_refused(ledger: SqliteLedger) -> None:
    for wrong in (entry(0, out=-1), entry(1)._replace(offset_to=0), entry(0, late=-1)):
        with pytest.raises(UserError, match="negative"):
            await ledger.write([wrong])
    assert await ledger.totals() == []


async def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    await ledger.close()
    with pytest.raises(UserError, match="closed"):
        await ledger.totals()


WRITER = """
import asyncio, sys
from pathlib import Path
from headrace.core.flow import LedgerEntry
from headrace.ledger.sqlite import SqliteLedger

async def main() -> None:
    ledger = SqliteLedger(Path(sys.argv[1]), epochs_kept=5)
    for epoch in range(40):
        await ledger.write([LedgerEntry(sys.argv[2], "s", 0, epoch, epoch, epoch + 1, 1, {})])
    await ledger.close()

asyncio.run(main())
"""


def test_several_processes_write_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    async def read() -> list[LedgerEntry]:
        ledger = SqliteLedger(path)
        found = await ledger.totals()
        await ledger.close()
        return found

    assert [(found.stage, found.rows_in, found.rows_out) for found in asyncio.run(read())] == [
        (name, 40, 40) for name in "abc"
    ]
