"""Structured logs: one JSON object a line (or a coloured line on a terminal), a fixed `noun.verbed` event with values."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
import structlog.tracebacks


def setup(part: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Configure logging of this process once; `part` is bound to every line."""
    out = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    for_people = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    render = for_people if out.isatty() else structlog.processors.JSONRenderer()
    # Tracebacks without the values of variables: those are payloads, keys and queries.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    traced = [] if out.isatty() else [tracebacks]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *traced,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(part=part)
    logging.basicConfig(stream=out, level=max(threshold, logging.WARNING), format="%(name)s %(levelname)s %(message)s")
