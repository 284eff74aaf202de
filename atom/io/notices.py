"""What plugins warn of, by Python's ``logging`` or ``warnings``: a line each, told once.

Warnings of libraries are a log's, where there is one; those of a plugin are for the user.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import PurePath

_plugins: set[str] = set()
"""The import packages of plugins."""

_BY_WARNINGS = "py.warnings"
"""The logger that :func:`logging.captureWarnings` gives Python's warnings to."""


def know(packages: Iterable[str]) -> None:
    """Take note of the import packages of plugins, before they are imported."""
    _plugins.update(packages)


class Notices(logging.Handler):
    """Tells each warning of a plugin once, as one line that begins with the plugin's name.

    Args:
        tell: takes the line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            plugin, text = _origin(record)
            line = f"{plugin}: {' '.join(text.split())}"
            if plugin in _plugins and line not in self._told:
                self._told.add(line)
                self._tell(line)
        except Exception:
            self.handleError(record)


def capture() -> None:
    """Give Python's warnings to the log, whatever took them from it since it last had them."""
    logging.captureWarnings(False)
    logging.captureWarnings(True)


def show() -> None:
    """Print plugins' warnings to the standard error from now on, and no library's."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, Notices)]:
        root.removeHandler(old)
    root.addHandler(Notices(lambda line: print(f"atom: {line}", file=sys.stderr, flush=True)))
    capture()


def _origin(record: logging.LogRecord) -> tuple[str, str]:
    """Return the package that a record is from, and its text."""
    text = record.getMessage()
    if record.name != _BY_WARNINGS:
        return record.name.partition(".")[0], text
    # "FILE:LINE: CATEGORY: text", and the line of code below it.
    place, _, rest = text.splitlines()[0].partition(": ")
    folders = PurePath(place).parts
    name = next((folder for folder in reversed(folders[:-1]) if folder in _plugins), "")
    return name, rest.partition(": ")[2]
