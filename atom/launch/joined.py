"""Ranks that a launcher around ATOM has started already: torchrun, or Slurm's srun.

Rank 0 composes the run, writes it down and tells the others where; no other rank reads the command
line, so no two ranks can understand it differently.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from atom import events, progress
from atom.errors import EX_STOPPED, RunStoppedError, UserError
from atom.launch.local import refuse_stopped
from atom.launch.start import follow
from atom.screen import Screen

if TYPE_CHECKING:
    from torch.distributed import Store

    from atom.titan.preflight import Preflight

_KEY = "atom/run.dir"
_REFUSED = "\0"
_DONE = "\1"
_RESTARTS = ("RESTART_COUNT", "MAX_RESTARTS")
_COMPOSING = timedelta(minutes=30)
"""How long rank 0 may take: a tokenizer may have to be trained first."""


def world_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of ranks started around this process, or None if ATOM starts them."""
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return int(environment["WORLD_SIZE"])
    # A batch script has a Slurm environment too; only a step's tasks are ranks.
    if {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NODELIST"} <= environment.keys():
        return int(environment["SLURM_NTASKS"]) if environment["SLURM_NTASKS"] != "1" else None
    return None


def adopt_slurm(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Give torch the variables that it knows, from those of ``srun``; leave torchrun's alone."""
    if "RANK" in environment:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    per_node = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    environment["LOCAL_WORLD_SIZE"] = per_node[0] if per_node else "1"
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
    # Jobs of one machine must not meet; a port above the well-known and below the ephemeral ones.
    port = 16384 + int(environment.get("SLURM_JOB_ID", "0")) % 16384
    environment.setdefault("MASTER_PORT", str(port))


def train(compose: Callable[[], Preflight | None], *, verbose: bool = False) -> int:
    """Be one rank.

    Args:
        compose: writes the run's folder; called on rank 0 only. None: nothing is left to train.
        verbose: show torchtitan's own log of rank 0.

    Returns:
        The exit code.

    Raises:
        UserError: on rank 0; the other ranks return 2 and say nothing.
    """
    import torch.distributed

    from atom.titan import rank

    adopt_slurm()
    store, number, _ = next(torch.distributed.rendezvous("env://"))
    if number != 0:
        answer = _wait(store)
        if answer == _REFUSED:
            return 2
        if answer == _DONE:
            return 0
        return EX_STOPPED if rank.train(Path(answer)) else 0
    try:
        ready = compose()
    except UserError:
        store.set(_KEY, _REFUSED)
        raise
    if ready is None:
        store.set(_KEY, _DONE)
        return 0
    store.set(_KEY, str(ready.place.absolute()))
    with _recorded(ready), _followed(ready, verbose=verbose):
        rank.train(ready.place, verbose=verbose)
        refuse_stopped(ready.place)
    return 0


@contextmanager
def _recorded(ready: Preflight) -> Iterator[None]:
    """Record the start of the ranks and their end, as far as rank 0 lives to see it."""
    # torchrun counts its restarts, and says how many there may be.
    done, limit = (int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in _RESTARTS)
    begin = time.time()
    events.record(ready.place, events.STARTED, ranks=ready.resolved.world_size, attempt=done + 1)
    try:
        yield
    except RunStoppedError:
        raise
    except Exception as error:
        events.record(
            ready.place,
            events.FAILED,
            reason=f"rank 0 failed: {type(error).__name__}: {error}",
            rank=0,
            step=progress.since(ready.place, begin),
            restart=done < limit,
        )
        raise
    progress.finish(ready.place)


@contextmanager
def _followed(ready: Preflight, *, verbose: bool) -> Iterator[None]:
    """Draw the run's progress, in a thread of rank 0, for as long as the context is open."""
    # The rank sends its own standard output to a file.
    terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    ended = threading.Event()
    failed: list[BaseException] = []

    def result() -> None:
        if failed:
            raise failed[0]

    def draw() -> None:
        with suppress(Exception):  # the rank itself raises it
            follow(ready, Screen(terminal, verbose=verbose), ended.is_set, result)

    thread = threading.Thread(target=draw, name="atom-follow", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        failed.append(error)
        raise
    finally:
        ended.set()
        thread.join()


def _wait(store: Store) -> str:
    store.wait([_KEY], _COMPOSING)
    return store.get(_KEY).decode()


def _first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list such as ``n[03-07,9],m1``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    assert match is not None, nodes
    return match[1] + (match[2] or "")
