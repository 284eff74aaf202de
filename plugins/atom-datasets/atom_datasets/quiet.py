"""Import and call ``datasets`` without its output on the screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from atom.io.printing import with_bars


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of ``datasets``, except progress bars on a terminal."""
    import datasets
    from datasets.utils import logging

    verbosity = logging.get_verbosity()
    bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        with redirect_stderr(with_bars(sys.stderr)):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
