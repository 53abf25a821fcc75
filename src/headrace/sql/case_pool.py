"""Running case files in worker processes, so that a case that crashes or hangs costs itself and nothing else.

Each worker takes one file at a time over a pipe. The parent holds the time limit: a worker that overruns it is killed and
replaced, one that dies is replaced too. Workers are spawned, not forked, because Arrow's threads do not survive a fork.
A worker whose parent died ends by itself: idle at the closed pipe, busy when its own, later time limit runs out.
"""

from __future__ import annotations

import faulthandler
import multiprocessing as mp
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from headrace.core.clock import Clock
from headrace.core.errors import Unavailable
from headrace.core.lean import hide
from headrace.sql.case_report import CaseResult, Kind

START_TIMEOUT_S = 120.0  # imports of a cold machine
_GRACE_S = 5.0


class _Worker:
    def __init__(self, batch_size: int | None, kill_every: int, timeout_s: float, clock: Clock) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, batch_size, kill_every, timeout_s), name="headrace-case", daemon=True
        )
        self.process.start()
        theirs.close()
        self.index: int | None = None  # the case it runs
        self.since = clock.monotonic()
        self.ready = False

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_cases(
    paths: Sequence[Path],
    *,
    batch_size: int | None = None,
    kill_every: int = 0,
    jobs: int = 2,
    timeout_s: float = 10.0,
    clock: Clock,
) -> Iterator[CaseResult]:
    """Results in the order of `paths`, each as soon as it and all before it are there.

    Raises Unavailable where no worker starts.
    """
    pool = _Pool(paths, batch_size, kill_every, timeout_s, clock)
    try:
        yield from pool.results(max(1, min(jobs, len(paths))))
    finally:
        for worker in pool.workers:
            worker.stop()


class _Pool:
    def __init__(
        self, paths: Sequence[Path], batch_size: int | None, kill_every: int, timeout_s: float, clock: Clock
    ) -> None:
        self.paths = paths
        self.settings = (batch_size, kill_every, timeout_s)
        self.timeout_s = timeout_s
        self.clock = clock
        self.workers: list[_Worker] = []
        self.next = 0
        self.done: dict[int, CaseResult] = {}

    def results(self, workers: int) -> Iterator[CaseResult]:
        for _ in range(workers):
            self._hire()
        for index in range(len(self.paths)):
            while index not in self.done:
                self._turn()
            yield self.done.pop(index)

    def _hire(self) -> None:
        self.workers.append(_Worker(*self.settings, self.clock))

    def _turn(self) -> None:
        """Wait for a worker to say something, or for the next time limit."""
        now = self.clock.monotonic()
        limits = [worker.since + self._limit(worker) for worker in self.workers if self._busy(worker)]
        said = wait([worker.pipe for worker in self.workers], timeout=max(0.0, min(limits, default=now + 1.0) - now))
        for worker in list(self.workers):
            if worker.pipe in said:
                self._hear(worker)
            elif self._busy(worker) and self.clock.monotonic() - worker.since >= self._limit(worker):
                if worker.index is None:
                    raise Unavailable(
                        f"a worker for cases was not ready after {START_TIMEOUT_S:.0f} s", hint="try --jobs 1"
                    )
                self._lost(worker, "timed_out", f"it did not end within {self.timeout_s:g} s and was stopped")

    @staticmethod
    def _busy(worker: _Worker) -> bool:
        return worker.index is not None or not worker.ready

    def _limit(self, worker: _Worker) -> float:
        return self.timeout_s if worker.ready else START_TIMEOUT_S

    def _hear(self, worker: _Worker) -> None:
        try:
            said: CaseResult | None = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(_GRACE_S)
            if worker.index is None:
                raise Unavailable(
                    f"a worker for cases ended with {_ending(worker)} before it began", hint="see the text above"
                ) from None
            self._lost(worker, "crashed", f"its process ended with {_ending(worker)}")
            return
        now = self.clock.monotonic()
        if said is not None and worker.index is not None:
            said.elapsed_s = now - worker.since
            self.done[worker.index] = said
        worker.ready, worker.index = True, None
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        if self.next < len(self.paths):
            worker.index, self.next = self.next, self.next + 1
            worker.since = self.clock.monotonic()
            worker.pipe.send(self.paths[worker.index])

    def _lost(self, worker: _Worker, kind: Kind, problem: str) -> None:
        assert worker.index is not None
        path = self.paths[worker.index]
        elapsed = self.clock.monotonic() - worker.since
        self.done[worker.index] = CaseResult(
            name=path.stem, file=str(path), kind=kind, problem=problem, elapsed_s=elapsed
        )
        worker.stop()
        self.workers.remove(worker)
        if self.next < len(self.paths):
            self._hire()


def _ending(worker: _Worker) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(pipe: Connection, batch_size: int | None, kill_every: int, timeout_s: float) -> None:
    """A worker's whole life. What user code prints goes to stderr: stdout belongs to the parent's report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    os.dup2(2, 1)
    hide("pandas")  # as jobs do; PyArrow would import it with its first array
    from headrace.sql.cases import Cut, run_file, warm_up

    cut = Cut(batch_size, kill_every)
    warm_up()
    with open(os.devnull, "w") as nowhere:
        pipe.send(None)
        while True:
            try:
                path = pipe.recv()
            except EOFError:
                return
            faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True, file=nowhere)
            result = run_file(path, cut)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(result)
