"""Show warnings of plugins, from Python's ``logging`` or ``warnings``, once each and on one line.

Warnings of libraries only go to the log, if there is one; warnings of plugins are for the user.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import PurePath

_plugins: set[str] = set()
"""Import packages of plugins."""

_BY_WARNINGS = "py.warnings"
"""The logger that :func:`logging.captureWarnings` sends Python's warnings to."""


def know(packages: Iterable[str]) -> None:
    """Register the import packages of plugins, before they are imported."""
    _plugins.update(packages)


class Notices(logging.Handler):
    """A handler that reports each warning of a plugin once, as one line that begins with the
    plugin's name.

    Args:
        tell: receives the line.
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
    """Route Python's warnings to the log, even if other code has changed that meanwhile."""
    logging.captureWarnings(False)
    logging.captureWarnings(True)


def show() -> None:
    """Print warnings of plugins, but not of libraries, to the standard error from now on."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, Notices)]:
        root.removeHandler(old)
    root.addHandler(Notices(lambda line: print(f"atom: {line}", file=sys.stderr, flush=True)))
    capture()


def _origin(record: logging.LogRecord) -> tuple[str, str]:
    """Return the package that a record comes from, and its text."""
    text = record.getMessage()
    if record.name != _BY_WARNINGS:
        return record.name.partition(".")[0], text
    # Format: "FILE:LINE: CATEGORY: text", followed by the source line.
    place, _, rest = text.splitlines()[0].partition(": ")
    folders = PurePath(place).parts
    name = next((folder for folder in reversed(folders[:-1]) if folder in _plugins), "")
    return name, rest.partition(": ")[2]
