"""Work for one thread, run together: what came while the thread was busy is its next round.

One hand-over to the thread and one commit serve all of a round, so many small writes at once cost about as much as one. A
round is bounded; nothing waits longer than the round before it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias, TypeVar

from headrace.core.errors import UserError

T = TypeVar("T")
ROUND_MAX = 500

Outcome: TypeAlias = tuple[Any, BaseException | None]
Work: TypeAlias = Callable[[], Any]


class _Task(NamedTuple):
    work: Work
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


class Gathered:
    """`run_round` gets the work of one round, in order, and returns one (result, error) for each. It must not raise."""

    def __init__(self, name: str, run_round: Callable[[Sequence[Work]], Sequence[Outcome]]) -> None:
        self._run_round = run_round
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[_Task] = deque()
        self._lock = threading.Lock()  # of `_waiting` and `_awake`: several event loops may use one store
        self._awake = False

    async def run(self, work: Callable[[], T]) -> T:
        """Raises what `work` raises; UserError once closed."""
        loop = asyncio.get_running_loop()
        task = _Task(work, loop, loop.create_future())
        with self._lock:
            self._waiting.append(task)
            wake, self._awake = not self._awake, True
        if wake:
            try:
                self._pool.submit(self._rounds)
            except RuntimeError as exc:
                raise UserError("the document store is closed", code="docstore.closed") from exc
        answer: T = await task.done
        return answer

    def shutdown(self) -> None:
        """Let what waits finish. Blocks; safe to call twice."""
        self._pool.shutdown()

    def _rounds(self) -> None:
        while True:
            with self._lock:
                taken = [self._waiting.popleft() for _ in range(min(ROUND_MAX, len(self._waiting)))]
                if not taken:
                    self._awake = False
                    return
            outcomes = self._run_round([task.work for task in taken])
            told: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Outcome]]] = {}
            for task, outcome in zip(taken, outcomes, strict=True):
                told.setdefault(task.loop, []).append((task.done, outcome))
            for loop, answers in told.items():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_tell, answers)


def _tell(answers: Sequence[tuple[asyncio.Future[Any], Outcome]]) -> None:
    for done, (result, error) in answers:
        if done.done():
            continue  # whoever asked has been cancelled
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
