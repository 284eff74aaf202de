"""Read ahead in a thread, so that the training thread does not wait for data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 0.1
"""Seconds after which a thread that cannot deliver looks whether it is still wanted."""


class ReadAhead(Generic[T]):
    """The results of ``read()``, called again and again.

    Args:
        read: returns the next result. It is called by one thread at a time.
        ahead: results to hold ready; 0: none, ``read`` is called in :meth:`next`.

    Attributes:
        waited: seconds that :meth:`next` has taken.
    """

    def __init__(self, read: Callable[[], T], ahead: int) -> None:
        self._read = read
        self._ahead = ahead
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready: Queue[tuple[T | None, BaseException | None]] = Queue(max(ahead, 1))
        self.waited = 0.0

    def next(self) -> T:
        """Return the next result, or raise what ``read`` has raised for it."""
        began = time.perf_counter()
        try:
            return self._next()
        finally:
            self.waited += time.perf_counter() - began

    def _next(self) -> T:
        if self._ahead == 0:
            return self._read()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="data", daemon=True)
            self._thread.start()
        result, error = self._ready.get()
        if error is not None:
            self.restart()
            raise error
        assert result is not None
        return result

    def restart(self) -> None:
        """Stop reading, and drop what is ready; :meth:`next` begins with a new ``read()``.

        When it returns, no thread calls ``read``, so that its state can be changed.
        """
        if self._thread is None:
            return
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=_POLL)
            except Empty:
                self._thread.join(_POLL)
        self._thread = None
        self._stop.clear()
        self._ready = Queue(max(self._ahead, 1))

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                item: tuple[T | None, BaseException | None] = self._read(), None
            except BaseException as error:  # raised again by the thread that wants the result
                item = None, error
            while not self._stop.is_set():
                try:
                    self._ready.put(item, timeout=_POLL)
                    break
                except Full:
                    continue
            if item[1] is not None:
                return
