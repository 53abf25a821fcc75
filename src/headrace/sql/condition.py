"""A boolean SQL expression over the fields of one event: what an alert's rule or a filter is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.core.schema import EventBatch
from headrace.sql.bind import Binder
from headrace.sql.decode import Decoder, Payload
from headrace.sql.evaluate import Frame, truth
from headrace.sql.rows import Rows
from headrace.sql.scope import Scope, ScopeSource, fail
from headrace.sql.script import parse_expression


def compile_condition(text: str) -> Condition:
    """Compile a condition. Raises SqlError; windows, aggregates and analytic functions are refused."""
    return Condition(text)


class Condition:
    def __init__(self, text: str) -> None:
        self.text = text
        scope = Scope([ScopeSource("event", None)])
        binder = Binder(scope, {})
        node = parse_expression(text)
        self._test = binder.bind(node)
        if binder.analytics:
            fail(binder.analytics[0].call.at, "a condition looks at one event only: no analytic functions")
        source = scope.sources[0]
        self.names = sorted(source.wants)
        self._decoder = Decoder(self.names, whole=source.whole)

    def evaluate(self, batch: EventBatch) -> npt.NDArray[np.bool_]:
        """Where the condition holds, one value per row. False for undecodable rows and where an expression fails."""
        out = np.zeros(batch.num_rows, np.bool_)
        if batch.num_rows == 0:
            return out
        payload, bad, _ = Payload.split(batch, self._decoder)
        arrivals = payload.arrivals()
        frame = Frame(arrivals, [Rows(arrivals, [payload], payload)])
        holds = truth(self._test(frame)).copy()
        for fault in frame.faults:
            holds[fault.row] = False
        good = np.ones(batch.num_rows, np.bool_)
        good[bad] = False
        out[good] = holds
        return out

    def fields(self, batch: EventBatch, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """Decoded payloads of chosen rows; an undecodable one is empty."""
        if len(rows) == 0:
            return []
        chosen = batch.take(pa.array(np.asarray(rows, np.int64)))
        payload, bad, _ = Payload.split(chosen, Decoder([], whole=True))
        records = iter(payload.records())
        wrong = set(bad.tolist())
        return [{} if row in wrong else next(records) for row in range(chosen.num_rows)]
