"""User code as a Function: `module:name`, found in the project folder or installed.

`name` is a class or object with `process(batch, epoch)` (and `open`, `close` if it wants), or a plain function, async or not,
of one Arrow RecordBatch. A blocking function runs in a thread of its own. Python cannot end a thread, so after a timeout the
next call first waits for the old one: two calls never run at the same time.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.core.errors import DataError, HeadraceError, UserError, nearest
from headrace.core.flow import Function, Outcome
from headrace.core.schema import EventBatch


class HandlerFailed(DataError):
    """The user's code raised. Some event of the batch is more than it can take."""

    code = "function.failed"


def load_handler(handler: str, folder: Path) -> Function:
    """The function that `handler` (`module:name`) names; modules in `folder` come before installed ones.

    Raises UserError that says which part was not found, or where the module itself fails.
    """
    module_name, colon, name = handler.partition(":")
    if not (module_name and colon and name):
        raise UserError(
            f"handler {handler!r} is not `module:name`",
            hint="write handler = 'cleaning:handle'",
            code="function.handler",
        )
    module = _import(module_name, folder)
    found = getattr(module, name, None)
    if found is None:
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise UserError(
            f"module {module_name!r} ({module.__file__}) has no {name!r}",
            hint=nearest(name, known) or f"it defines: {', '.join(sorted(known)) or 'nothing that can be called'}",
            code="function.handler",
        )
    return as_function(found, handler)


def as_function(found: Any, handler: str) -> Function:
    """Wrap what a user wrote. A class is made without arguments."""
    thing = found() if inspect.isclass(found) else found
    if hasattr(thing, "process"):
        return _Handled(handler, thing.process, getattr(thing, "open", None), getattr(thing, "close", None))
    if callable(thing):
        return _Handled(handler, thing, takes_epoch=False)
    raise UserError(
        f"handler {handler!r} is a {type(thing).__name__}, not a function or a class with `process`",
        hint="write `def handle(batch: pa.RecordBatch) -> None`",
        code="function.handler",
    )


def _import(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name and not name.startswith(f"{exc.name}."):
            raise UserError(
                f"module {name!r} imports {exc.name!r}, which is not installed",
                hint=f"install {exc.name!r} into the environment that runs headrace",
                code="function.handler",
            ) from exc
        known = [path.stem for path in folder.glob("*.py")]
        raise UserError(
            f"no module {name!r} in {folder} or installed",
            hint=nearest(name, known) or f"write {folder / (name.replace('.', '/') + '.py')}",
            code="function.handler",
        ) from exc
    except Exception as exc:
        line = exc.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        where = f"{line.tb_frame.f_code.co_filename}:{line.tb_lineno}" if line else name
        raise UserError(
            f"module {name!r} fails when it is imported: {type(exc).__name__}: {exc}",
            hint=f"see {where}",
            code="function.handler",
        ) from exc


class _Handled:
    """A user's callables behind the Function contract. What they return but an Outcome counts as all rows used."""

    def __init__(
        self,
        handler: str,
        process: Callable[..., Any],
        open_: Callable[[], Any] | None = None,
        close: Callable[[], Any] | None = None,
        *,
        takes_epoch: bool = True,
    ) -> None:
        self._handler = handler
        self._process = process
        self._open = open_
        self._close = close
        self._takes_epoch = takes_epoch and _takes_epoch(process)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=handler)
        self._running: Future[Any] | None = None

    async def open(self) -> None:
        await self._call(self._open)

    async def process(self, batch: EventBatch, epoch: int) -> Outcome:
        try:
            answer = await self._call(self._process, *((batch, epoch) if self._takes_epoch else (batch,)))
        except HeadraceError:
            raise
        except Exception as exc:
            raise HandlerFailed(f"{self._handler} raised {type(exc).__name__}: {exc}") from exc
        return answer if isinstance(answer, Outcome) else Outcome(batch.num_rows)

    async def close(self) -> None:
        await self._call(self._close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, call: Callable[..., Any] | None, *arguments: Any) -> Any:
        if call is None:
            return None
        if inspect.iscoroutinefunction(call):
            return await call(*arguments)
        if self._running is not None and not self._running.done():
            await asyncio.shield(_settled(self._running))
        self._running = self._thread.submit(call, *arguments)
        # Shielded: a timeout must not make the executor forget a call that is still running.
        return await asyncio.shield(asyncio.wrap_future(self._running))


async def _settled(call: Future[Any]) -> None:
    """Wait for a call that nobody else waits for any more; how it ended was told as a timeout."""
    await asyncio.gather(asyncio.wrap_future(call), return_exceptions=True)


def _takes_epoch(process: Callable[..., Any]) -> bool:
    try:
        inspect.signature(process).bind(None, 0)
    except TypeError:
        return False
    return True
