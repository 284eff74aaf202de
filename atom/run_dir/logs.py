"""Configure structured logs: one JSON line per record, one file per process.

structlog and the standard library's ``logging`` (which torchtitan uses) write to the same file.
Each line has the keys ``time`` (ISO 8601, UTC), ``level``, ``event``, ``rank`` (on ranks),
``logger``, then the record's own fields, and ``exception`` with the traceback, if any.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TextIO

import structlog
from structlog.types import EventDict

from atom.io.files import appending
from atom.io.notices import Notices, capture
from atom.io.printing import as_it_is, clean, escaped
from atom.run_dir import events

_terminal: TextIO | None = None
"""The standard error stream before :func:`redirect_output`."""

_replaced: list[TextIO] = []
"""The original streams, kept alive because some close descriptor 1 or 2 when they are freed."""


def setup_rank(folder: Path, rank: int, *, verbose: bool = False) -> None:
    """Send every record of this process from INFO on to ``folder/rank_N.jsonl``.

    Call it in the rank, after the fork; a second call replaces the first.

    Args:
        folder: the run's ``logs`` folder, which exists.
        rank: the rank of this process.
        verbose: on rank 0, also write readable lines to the standard error stream from before
            :func:`redirect_output`.
    """
    handlers: list[logging.Handler] = [_json_handler(folder / f"rank_{rank}.jsonl", rank=rank)]
    if verbose and rank == 0:
        handlers.append(_console_handler(_terminal or as_it_is(sys.stderr)))
    if rank == 0:
        run = folder.parent
        handlers.append(Notices(lambda line: events.record(run, events.WARNED, text=line)))
    _install(handlers)


def setup_launcher(path: Path) -> None:
    """Send every record of this process from INFO on to the file ``path``, and nowhere else.

    Ranks that are forked later have to call :func:`setup_rank`.
    """
    _install([_json_handler(path)])


def redirect_output(folder: Path, rank: int) -> None:
    """Redirect the output of this process and its C++ libraries to ``folder/rank_N.txt``.

    This replaces file descriptors 1 and 2, ``sys.stdout`` and ``sys.stderr``. Call it before
    :func:`setup_rank`.
    """
    global _terminal
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _terminal is None:
        _replaced.extend((sys.stdout, sys.stderr))
        _terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    file = appending(folder / f"rank_{rank}.txt", below=folder.parent)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    sys.stdout, sys.stderr = _text(1), _text(2)


def remove_if_empty(folder: Path) -> None:
    """Remove every empty ``rank_N.txt``, once the ranks have ended."""
    for path in folder.glob("rank_*.txt"):
        if path.lstat().st_size == 0:
            path.unlink()


def stamp(seconds: float) -> str:
    """Format a time, in seconds since the epoch, as the logs do; the result sorts as text."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _text(descriptor: int) -> TextIO:
    return os.fdopen(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


# ---------------------------------------------------------------------------- handlers


class _LineHandler(logging.Handler):
    """A handler that appends each record to ``path`` with one write, so that forked processes can
    share the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = appending(path, below=path.parent.parent)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A lone surrogate is written as \udc80, its JSON escape.
            os.write(self._file, f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()


def _json_handler(path: Path, **constant: int) -> logging.Handler:
    handler = _LineHandler(path)
    handler.setFormatter(
        _formatter(
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _Fields(constant),
            _json,
        )
    )
    return handler


def _console_handler(stream: IO[str]) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    console = structlog.dev.ConsoleRenderer(
        colors=colors,
        timestamp_key="time",
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )
    handler.setFormatter(
        _formatter(
            structlog.processors.format_exc_info,
            _Fields({}, time="%H:%M:%S"),
            _cleaned,
            console,
        )
    )
    return handler


def _formatter(*processors: structlog.types.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder()],
        processors=processors,
    )


def _install(handlers: list[logging.Handler]) -> None:
    """Make ``handlers`` the only handlers of the root logger, which receives every record."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    _silence_own_handlers()
    capture()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _silence_own_handlers() -> None:
    """Send the records of libraries to the root logger only: torch and others install handlers that
    write to the standard error stream."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for handler in logger.handlers[:]:
            if (
                type(handler) is logging.StreamHandler
                or type(handler).__name__ == "_StderrHandler"  # torch._logging._internal
            ):
                logger.removeHandler(handler)
                logger.propagate = True


# ---------------------------------------------------------------------------- processors


_COLOR = re.compile(r"\x1b\[[\d;]*m")
"""torchtitan colors its messages for a terminal, but they go to a file."""


class _Fields:
    """A processor that puts the common keys before the record's own fields."""

    def __init__(self, constant: dict[str, int], time: str | None = None) -> None:
        self._constant = constant
        self._time = time

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        del event["_from_structlog"]
        fields: EventDict = {
            "time": self._stamp(record.created),
            "level": record.levelname.lower(),
            "event": _COLOR.sub("", str(event.pop("event"))),
            **self._constant,
            "logger": record.name,
        }
        # A field with the name of a common key is kept under another name.
        own = {f"{key}_" if key in fields else key: value for key, value in event.items()}
        return {**fields, **own}

    def _stamp(self, seconds: float) -> str:
        if self._time is not None:
            return datetime.fromtimestamp(seconds).strftime(self._time)
        return stamp(seconds)


def _cleaned(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Remove terminal control sequences from a record."""
    return {
        clean(key): clean(value, keep="\n\t") if isinstance(value, str) else value
        for key, value in event.items()
    }


def _json(_logger: object, _method: str, event: EventDict) -> str:
    return escaped(_dumped(event))


def _dumped(event: EventDict) -> str:
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False, default=repr)
    except (TypeError, ValueError):
        # A NaN, a key that is not a string, or a cycle must not discard a record.
        plain = (str, int, type(None))
        values = {k: v if isinstance(v, plain) else repr(v) for k, v in event.items()}
        return json.dumps(values, ensure_ascii=False)
