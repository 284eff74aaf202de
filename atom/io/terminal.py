"""Draw on a terminal: an animated line, and a stream that accepts any text."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import IO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment

from atom.io.printing import STEERING, as_it_is, clean


class Animation:
    """A line that is redrawn five times a second, below all other output.

    rich's own thread is not joined when it stops, but a process with threads must not fork.
    """

    def __init__(self, console: Console, status: Callable[[], RenderableType]) -> None:
        self._status = status
        self._live = Live(
            console=console,
            get_renderable=lambda: self._status(),
            auto_refresh=False,
            transient=True,
            # Other output of this process does not belong to this screen, which can be a duplicate.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atom-screen", daemon=True)
        self._live.start(refresh=True)
        self._thread.start()
        atexit.register(self.close)  # always restore the terminal's cursor

    def show(self, status: Callable[[], RenderableType]) -> None:
        """Draw ``status`` from the next refresh on."""
        self._status = status

    def draw(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        atexit.unregister(self.close)
        self._closed.set()
        self._thread.join()
        self._live.stop()

    def _run(self) -> None:
        while not self._closed.wait(0.2):
            self.draw()


_ASCII = str.maketrans({"×": "x", "→": "->", "…": "..."})


_GONE = (errno.EPIPE, errno.EIO)
"""The reader of a pipe has ended, or the terminal has been closed."""


class Encodable:
    """A text stream that replaces characters that its encoding lacks.

    A run outlives its screen: once the output is closed, further text is discarded.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = as_it_is(stream)
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII).encode(self.encoding, "replace").decode(self.encoding)
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _lose(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._stream.flush()


class Styled(Console):
    """A console that applies only ATOM's own styles and cursor movements, not those in the text.

    Args:
        stream: the output.
    """

    def __init__(self, stream: Encodable) -> None:
        super().__init__(
            file=cast(IO[str], stream),
            markup=False,
            highlight=False,
            emoji=False,
            force_jupyter=False,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(clean(segment.text, keep="\n\t"), segment.style)


def say(text: str) -> None:
    """Print a line on a run's screen."""
    out = Encodable(sys.stdout)
    out.write(clean(f"{text}\n", keep="\n\t"))
    out.flush()
