"""Start ranks on this machine."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from atom.errors import RunError, RunStoppedError
from atom.io.process import Child, call
from atom.launch.failure import Failure
from atom.launch.gate import Gate
from atom.launch.machine import Machine
from atom.launch.rendezvous import private_folder
from atom.launch.restarts import Restarts
from atom.recipe.sections import Launch
from atom.run_dir import checkpoint, events, logs, progress
from atom.run_dir.prepare import data_changed


def start(
    folder: Path, ranks: int, device: str, launch: Launch | None = None, *, verbose: bool = False
) -> None:
    """Run every rank of the run in ``folder`` to its end; restart them where that may help.

    Call it in a process that has only the main thread, because each start forks this process.

    Raises:
        RunError: a rank failed, and the others have been ended.
        RunStoppedError: the ranks were asked to stop before the last step, and stopped.
    """
    launch = launch or Launch()
    restarts = Restarts(launch.max_restarts)
    attempt = 0
    while True:
        attempt += 1
        begin = time.time()
        events.record(folder, events.STARTED, ranks=ranks, attempt=attempt)
        child = Child(partial(start_once, folder, Machine(ranks), device, launch, verbose=verbose))
        signal.signal(signal.SIGUSR1, partial(_pass_on, child))
        failure = child.result()
        logs.remove_if_empty(folder / "logs")
        if failure is None:
            refuse_stopped(folder)
            progress.finish(folder)
            return
        step = progress.since(folder, begin)
        saved = checkpoint.resumable(folder / checkpoint.FOLDER)
        refused = restarts.refuse(failure, step=step, saved=saved[0] if saved else 0)
        if refused is None:
            refused = call(partial(data_changed, folder))
        again = refused is None
        events.record(
            folder,
            events.FAILED,
            reason=failure.words,
            rank=failure.rank,
            step=step,
            restart=again,
        )
        if refused is not None:
            why = f"; not restarted: {refused}" if refused else ""
            raise RunError(f"{failure.words}{why}")


def _pass_on(child: Child[Any], number: int, _frame: FrameType | None) -> None:
    child.signal(signal.Signals(number))


def start_once(
    folder: Path, machine: Machine, device: str, launch: Launch, *, verbose: bool
) -> Failure | None:
    """Train on every rank of a machine to its end; return the failure that ended them early, or
    None.
    """
    from atom.launch import rank

    work = Work(rank.main, (str(folder), verbose), rank.__name__, ("-v",) if verbose else ())
    return start_ranks(work, folder, machine, device, launch)


@dataclass(frozen=True)
class Work:
    """What each rank runs.

    Attributes:
        function: called as ``function(*arguments, finished, store, gate)`` on a CPU; see
            :func:`atom.launch.rank.main`.
        arguments: its first arguments.
        module: run as ``python -m MODULE FOLDER FINISHED [--store FILE] WORDS…`` on GPUs.
        words: its last arguments.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    module: str
    words: tuple[str, ...] = ()


def start_ranks(
    work: Work, folder: Path, machine: Machine, device: str, launch: Launch
) -> Failure | None:
    """Run every rank of a machine to its end; return the failure that ended them early, or None.

    On a CPU the ranks are forked from this process, which has already imported torchtitan: sixteen
    imports on two cores take longer than a short run. With GPUs each rank is a new process, since
    CUDA does not survive a fork.
    """
    from atom.launch.agent import Agent

    with private_folder() as private:
        store = str(private / "store") if machine.endpoint is None else None
        (finished := private / "finished").mkdir()
        gate = Gate()
        entrypoint: Callable[..., Any] | str = work.function
        arguments: tuple[Any, ...] = (*work.arguments, str(finished), store, gate)
        if device != "cpu":
            entrypoint = sys.executable
            options = ("--store", store) if store else ()
            arguments = ("-u", "-P", "-m", work.module, str(folder), str(finished))
            arguments += (*options, *work.words)
        else:
            # A GC pass would break copy-on-write sharing between the ranks.
            gc.freeze()
        agent = Agent(
            entrypoint,
            arguments,
            machine,
            run=folder,
            launch=launch,
            started=gate.open,
            finished=finished,
        )
        agent.start()
        return agent.failure


def refuse_stopped(folder: Path) -> None:
    """Raise :class:`RunStoppedError` if the ranks of the run stopped early."""
    if words := events.stopped(folder):
        begins = f"the same command with run.dir={folder}"
        saved = checkpoint.resumable(folder / checkpoint.FOLDER)
        goes_on = f"resumes after step {saved[0]:,}" if saved else "starts again at step 1"
        raise RunStoppedError(f"{words}; {begins} {goes_on}")
