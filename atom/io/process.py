"""Call a function in a forked child, so that what it leaves behind dies with it.

Preparing data starts thread pools (tokenizers, Arrow) and the screen is drawn while ranks start; a
process that has threads must not be forked, and on a CPU the ranks are forked.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

T = TypeVar("T")


class Child(Generic[T]):
    """``function`` at work in a forked child. Its result, or what it raises, must pickle."""

    def __init__(self, function: Callable[[], T]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_answer, args=(sender, function))
        self._process.start()
        sender.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child, if it has not ended."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def working(self) -> bool:
        """Return whether there is no answer yet."""
        return not self._receiver.poll() and self._process.is_alive()

    def result(self) -> T:
        """Wait for the answer and return it.

        Raises:
            Exception: what the function raised; a ``RuntimeError`` if the child died of something
                else.
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
        """End the child: a chance to tidy up first, then for good."""
        self._process.terminate()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def call(function: Callable[[], T]) -> T:
    """Return ``function()``, computed in a child, which an interruption of this process ends."""
    child = Child(function)
    try:
        return child.result()
    except KeyboardInterrupt:
        child.terminate()
        raise


def die_with_parent(how: signal.Signals) -> None:
    """Have the kernel send this process ``how`` when its parent ends, however it ends."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, how)


def _answer(sender: Connection, function: Callable[[], T]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # and so does a terminal's end
    # A request to stop may come before there is anyone to hear it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGTERM)
    try:
        answer: tuple[str, object] = ("returned", function())
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = ("raised", error)
    # Python takes its own handlers away as it ends; a request that comes late must not kill.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sender.send(answer)
    sender.close()
