"""Capture the log records of a logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def records_of(logger: str) -> Iterator[list[logging.LogRecord]]:
    """Yield a list of the records logged within the context, from INFO on."""
    found: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler, named = Kept(), logging.getLogger(logger)
    level = named.level
    named.addHandler(handler)
    named.setLevel(logging.INFO)
    try:
        yield found
    finally:
        named.removeHandler(handler)
        named.setLevel(level)
