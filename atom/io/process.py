"""Call a function in a forked child, so that its threads and other leftovers end with it.

Preparing data starts thread pools (tokenizers, Arrow), and the screen is drawn while ranks start. A
process with threads must not fork, and on a CPU the ranks are forked.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

T = TypeVar("T")


class Child(Generic[T]):
    """A forked child that runs ``function``. Its result or exception must be picklable."""

    def __init__(self, function: Callable[[], T]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_answer, args=(sender, function))
        self._process.start()
        sender.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child, if it is still running."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def working(self) -> bool:
        """Return whether the result is still pending."""
        return not self._receiver.poll() and self._process.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for the result, at most ``seconds``; return whether it is there."""
        return self._receiver.poll(seconds)

    def result(self) -> T:
        """Wait for the result and return it.

        Raises:
            Exception: the exception that the function raised; a ``RuntimeError`` if the child died
                otherwise.
        """
        try:
            outcome, value = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a child ended with exit code {self._process.exitcode}") from None
        self._receiver.close()
        self._process.join()
        if outcome == "raised":
            raise value
        return value

    def terminate(self) -> None:
        """End the child with SIGTERM, then with SIGKILL if necessary."""
        self._process.terminate()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def call(function: Callable[[], T]) -> T:
    """Return ``function()``, computed in a child that ends when this process is interrupted."""
    child = Child(function)
    try:
        return child.result()
    except KeyboardInterrupt:
        child.terminate()
        raise


def die_with_parent(how: signal.Signals) -> None:
    """Make the kernel send ``how`` to this process when its parent ends for any reason."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, how)


def _answer(sender: Connection, function: Callable[[], T]) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the same applies to a hangup
    # A stop request can arrive before its handler is installed.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGTERM)
    try:
        answer: tuple[str, object] = ("returned", function())
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = ("raised", error)
    # Python removes its handlers as it exits; a late stop request must not kill the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sender.send(answer)
    sender.close()


@contextmanager
def importing() -> Iterator[None]:
    """Import large packages without collecting garbage, which takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
