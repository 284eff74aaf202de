"""Share numbered pieces of work among forked processes."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing import connection
from typing import Generic, TypeVar

from atom.errors import RunError
from atom.io.process import die_with_parent

T = TypeVar("T")

Work = Callable[[int, Callable[[T], None]], None]
"""Does the piece of work with a number; the second argument tells the parent how it proceeds."""

_LOOK_SECONDS = 0.2


def run(
    work: Callable[[], Work[T]],
    numbers: Iterable[int],
    count: int,
    told: Callable[[T | None], None],
) -> None:
    """Do all pieces of work in ``count`` processes.

    The caller must have no threads. All processes end with this one, even if it is killed.

    Args:
        work: called once in each process; returns the function that does a piece.
        numbers: the pieces.
        count: number of processes.
        told: called with what the work tells, and with None several times a second.

    Raises:
        RunError: a process was killed.
        Exception: the first exception of a piece; the other processes have been ended.
    """
    waiting = deque(numbers)
    workers = [_Worker(work) for _ in range(min(count, len(waiting)))]
    try:
        told(None)
        busy = {worker.pipe: worker for worker in workers}
        for worker in workers:
            worker.pipe.send(waiting.popleft())
        while busy:
            for pipe in connection.wait(list(busy), timeout=_LOOK_SECONDS):
                assert isinstance(pipe, connection.Connection)
                kind, value = busy[pipe].answer()
                if isinstance(value, Exception):
                    raise value
                if kind == "told":
                    told(value)
                elif waiting:
                    pipe.send(waiting.popleft())
                else:
                    del busy[pipe]
            told(None)
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[T]):
    def __init__(self, work: Callable[[], Work[T]]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_process, args=(other, work), daemon=True)
        self._process.start()
        other.close()

    def answer(self) -> tuple[str, T | Exception | None]:
        try:
            found: tuple[str, T | Exception | None] = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise RunError(
                f"a worker ended {how}, perhaps because memory ran out; what is done is kept, and "
                "the same command resumes"
            ) from None
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _process(pipe: connection.Connection, work: Callable[[], Work[T]]) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    try:
        piece = work()
        while True:
            piece(pipe.recv(), lambda value: pipe.send(("told", value)))
            pipe.send(("done", None))
    except EOFError:
        return
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(("raised", error))
