"""Answers in the order of what they answer, each when all that it promises is true.

An answer may wait for the store, the event log or both; one that is ready waits for those before it, because MQTT wants
acknowledgements in the order of the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from headrace.gateway.broker.store import Store

ANSWERS_MAX = 256
"""Reads whose answers may wait for the disk; then the client is not read from for a while."""


class Answer:
    """Bytes that wait for `waits` promises. `frees` messages then no longer count against the receive maximum."""

    __slots__ = ("data", "frees", "then", "waits")

    def __init__(self, data: bytes = b"", *, frees: int = 0, then: Callable[[], None] | None = None) -> None:
        self.data = data
        self.frees = frees
        self.waits = 0
        self.then = then


class Answers:
    """One connection's. `write` sends bytes; `hold` and `go_on` stop and resume reading from the client."""

    def __init__(
        self, store: Store, *, write: Callable[[bytes], None], hold: Callable[[str], None], go_on: Callable[[str], None]
    ) -> None:
        self._store = store
        self._write, self._hold, self._go_on = write, hold, go_on
        self._queue: deque[Answer] = deque()
        self._closed = False
        self.open = 0  # messages of the client that are still to be answered for good

    def add(self, answer: Answer, before: int) -> None:
        """Queue an answer. `before` is the store's count of changes when the work for it began."""
        self._queue.append(answer)
        if self._store.changes != before:
            answer.waits += 1
            self._store.when_durable(lambda: self.kept(answer))
        if not answer.waits:
            self._send()
        if len(self._queue) > ANSWERS_MAX:
            self._hold("answers")

    def kept(self, answer: Answer) -> None:
        """One of an answer's promises is true now."""
        answer.waits -= 1
        if not answer.waits:
            self._send()

    def close(self) -> None:
        """Nothing is sent any more."""
        self._closed = True

    def _send(self) -> None:
        queue = self._queue
        while queue and not queue[0].waits:
            answer = queue.popleft()
            self.open = max(0, self.open - answer.frees)
            if self._closed:
                continue
            if answer.data:
                self._write(answer.data)
            if answer.then is not None:
                answer.then()
        if len(queue) < ANSWERS_MAX // 2:
            self._go_on("answers")
