"""Turn signals to the launcher into a stop request to the ranks: stop after this step, and save."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from atom.recipe.run import read
from atom.run_dir import events
from atom.run_dir.folder import RUN_FILE
from atom.watch.screen import Screen

_REPEAT_SECONDS = 1.0


class Stopper:
    """A context in which signals ask the ranks to stop.

    SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (the terminal is gone) and the first Ctrl-C ask the
    ranks to stop; a second Ctrl-C raises :class:`KeyboardInterrupt`. An ignored SIGHUP, as under
    ``nohup``, stays ignored.

    Args:
        run: the run folder, where an event records the signal; ranks receive a different one.
        screen: shows the request; before it has shown a step, Ctrl-C stops at once.
        ask: sends the request.
    """

    def __init__(self, run: Path, screen: Screen, ask: Callable[[], None]) -> None:
        self._run = run
        self._screen = screen
        self._ask = ask
        self._asked: float | None = None
        settings = read(run / RUN_FILE).checkpoint
        saves = settings.enable and not settings.engine.get("load_only", False)
        self._saving = "with a checkpoint" if saves else "without a checkpoint"

    def __enter__(self) -> Stopper:
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def repeat(self) -> None:
        """Repeat the request until the ranks end, since their handlers may not be installed yet."""
        if self._asked is not None and time.monotonic() - self._asked > _REPEAT_SECONDS:
            self._asked = time.monotonic()
            self._ask()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self._asked is not None or not self._screen.has_steps):
            raise KeyboardInterrupt
        if self._asked is None:
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            self._screen.note(f"{name}: stopping after the next step, {self._saving}{again}")
            events.ask(self._run, name)
        self._asked = time.monotonic()
        self._ask()
