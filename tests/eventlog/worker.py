"""A process of its own for the tests: `worker.py write|read FOLDER ...`. Prints a line whenever something is certain."""

import asyncio
import os
import sys
from pathlib import Path


class NoPandas:
    """pyarrow imports pandas where it can, which is most of the time that this process takes to start."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, NoPandas)

from headrace.core.clock import SystemClock  # noqa: E402
from headrace.core.identity import message_event_id  # noqa: E402
from headrace.core.schema import event_batch  # noqa: E402
from headrace.eventlog.sqlite import SqliteEventLog  # noqa: E402

ROWS = 20
APPENDERS = 4


async def write(folder: Path, name: str, first: int, batches: int) -> None:
    """Append `batches` batches from batch `first` on, some at a time; list each on disk once it is acknowledged."""
    log = SqliteEventLog(folder, SystemClock())
    acknowledged = os.open(folder / f"{name}.acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = iter(range(first, first + batches))

    async def appender() -> None:
        for number in numbers:
            keys = [f"{name}/{number * ROWS + row}" for row in range(ROWS)]
            devices = [f"{name}-{row}" for row in range(ROWS)]
            ids = [message_event_id(device, None, key) for device, key in zip(devices, keys, strict=True)]
            bodies = [key.encode() for key in keys]
            await log.append("s", event_batch({"_event_id": ids, "_device": devices, "_body": bodies}))
            os.write(acknowledged, "".join(f"{key}\n" for key in keys).encode())
            os.fsync(acknowledged)
            print(number, flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(APPENDERS):
            group.create_task(appender())
    await log.close()


async def read(folder: Path, total: int) -> None:
    """Read from the beginning, live, until `total` rows were seen; print how many and a checksum of their order."""
    log = SqliteEventLog(folder, SystemClock())
    positions: tuple[int, ...] = ()
    bodies: list[str] = []
    while len(bodies) < total:
        piece = await log.read_merged("s", positions, rows_max=97, wait_s=20)
        if not piece.batch.num_rows:
            break
        positions = piece.positions
        bodies += [body.decode() for body in piece.batch.column("_body").to_pylist()]
    print(*bodies, sep="\n", flush=True)
    await log.close()


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "write":
        asyncio.run(write(Path(where), rest[0], int(rest[1]), int(rest[2])))
    else:
        asyncio.run(read(Path(where), int(rest[0])))
