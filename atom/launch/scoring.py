"""Score a trained model on several ranks of this machine, for a command that reports itself.

Rank 0 writes to the terminal. The other ranks, and torchtitan's log, write to a folder of their
own, which is kept if a rank fails.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import structlog

from atom.errors import RunError, UserError
from atom.io.files import make_folder, read_text, write_text
from atom.io.process import call
from atom.launch import rank, rendezvous
from atom.launch.failure import RANK_FAILED, Failure
from atom.launch.gate import Gate
from atom.launch.local import Work, start_ranks
from atom.launch.machine import Machine
from atom.recipe.sections import Launch
from atom.run_dir import logs

_REFUSED = "refused"
"""The file with the sentence of a rank that refuses its input."""

_UNWATCHED = Launch(start_seconds=1e9)
"""A task has no steps, so ranks never count as hung."""


def run(work: Callable[[], None], module: str, words: Sequence[str], ranks: int, kind: str) -> None:
    """Run ``work`` on each rank.

    Args:
        work: the work of a rank, on a CPU.
        module: a module that calls :func:`on_rank`, on GPUs.
        words: its arguments after those of :func:`on_rank`.
        ranks: the number of ranks.
        kind: the device, ``cpu`` or ``cuda``.

    Raises:
        UserError: a rank refused its input.
        RunError: a rank failed; the others were ended.
    """
    folder = Path(tempfile.mkdtemp(prefix="atom-scoring-"))
    make_folder(folder / "logs")
    sys.stdout.flush()
    shared = Work(on_rank, (str(folder), work), module, tuple(words))
    kept = False
    try:
        failure = call(partial(_start, shared, folder, ranks, kind))
        refused = folder / _REFUSED
        if refused.is_file():
            raise UserError(read_text(refused))
        if failure is not None:
            kept = True
            raise RunError(failure.words)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _start(work: Work, folder: Path, ranks: int, kind: str) -> Failure | None:
    logs.setup_launcher(folder / "logs" / "launcher.jsonl")
    return start_ranks(work, folder, Machine(ranks), kind, _UNWATCHED)


def on_rank(
    folder: str,
    work: Callable[[], None],
    finished: str,
    store: str | None = None,
    gate: Gate | None = None,
) -> None:
    """Run ``work`` as the rank that the environment assigns to this process.

    Args:
        folder: the folder of the logs.
        work: the work.
        finished: the folder where a rank that has finished leaves a file.
        store: the rendezvous file.
        gate: opens once all ranks have been started.
    """
    rank.begin(gate)
    number, place = int(os.environ["RANK"]), Path(folder)
    if number:
        logs.redirect_output(place / "logs", number)
    logs.setup_rank(place / "logs", number)
    if store is not None:
        rendezvous.use_file(Path(store))
    try:
        work()
    except UserError as error:
        _refuse(place, error)
    except BaseException as error:
        words = traceback.format_exception_only(error)[-1].strip()
        structlog.get_logger("atom").exception(RANK_FAILED, error=words)
        raise
    import torch

    torch.distributed.destroy_process_group()
    Path(finished, os.environ["RANK"]).touch()


def _refuse(place: Path, error: UserError) -> NoReturn:
    """End this rank; the launcher tells the first refusal of all ranks."""
    if not (place / _REFUSED).exists():
        write_text(place / _REFUSED, error.sentence())
    sys.stdout.flush()
    # The other ranks wait for this one: torch's own end would wait for them.
    os._exit(2)
