"""Train on ranks that an external launcher has started: torchrun, or Slurm's srun.

Rank 0 composes the run, writes its folder and sends the path to the others. No other rank reads the
command line, so all ranks train the same run.
"""

from __future__ import annotations

import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from atom.errors import EX_STOPPED, RunError, RunStoppedError, UserError
from atom.io.environment import JOIN_SECONDS
from atom.launch import evaluations
from atom.launch.local import refuse_stopped
from atom.launch.rendezvous import tcp_store
from atom.launch.start import follow
from atom.recipe.run import Run
from atom.run_dir import events, progress
from atom.watch.screen import Screen

if TYPE_CHECKING:
    from torch.distributed import Store

    from atom.titan.preflight.preflight import Preflight

_KEY = "atom/run.dir"
_REFUSED = "\0"
_DONE = "\1"
_RESTARTS = ("RESTART_COUNT", "MAX_RESTARTS")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS")
_NO_STEPS = ("4294967290", "4294967291")
"""Slurm step ids of salloc's shell and of a batch script, which are not steps with ranks."""

_MEETING = timedelta(minutes=10)
"""Time that ranks may take to rendezvous; each has imported torch by then."""

_LOOK_SECONDS = 0.5
"""Interval between attempts to reach rank 0, which may start later than the others."""

_PATIENCE = 5.0
"""Seconds of waiting after which a message says what the rank waits for."""

_COMPOSING = timedelta(minutes=30)
"""Time that rank 0 may take; it may have to train a tokenizer first."""


def world_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of ranks started around this process, or None if ATOM starts them.

    Raises:
        UserError: the variables contradict each other, or belong to a shell instead of a rank.
    """
    if environment.keys() >= set(_TORCHRUN):
        address, port = (environment.get(name, "") for name in _ADDRESS)
        if not address or not port.isdecimal():
            raise UserError(
                f"{', '.join(_TORCHRUN)} are set, and MASTER_ADDR={address} MASTER_PORT={port} is "
                "no address of rank 0",
                valid=f"{_remedy(_TORCHRUN)}, or what torchrun sets",
            )
        return _consistent(environment, "RANK", "WORLD_SIZE", _TORCHRUN)
    # A batch script has Slurm variables too; only the tasks of a step are ranks.
    if environment.keys() >= {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NODELIST"}:
        if environment.get("SLURM_STEP_ID") in _NO_STEPS:
            return None
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        number = _consistent(environment, "SLURM_PROCID", tasks, ("SLURM_PROCID",))
        if number > 1 and "SLURM_PTY_PORT" in environment and os.isatty(0):
            raise UserError(
                f"this shell is task {environment['SLURM_PROCID']} of {number} of a Slurm step "
                f"(SLURM_PROCID, {tasks}), and no other task joins it",
                valid="srun atom train …, "
                "or env -u SLURM_PROCID atom train … for ranks on this machine",
            )
        return number if number != 1 else None
    for name in _MPI:
        if environment.get(name, "1") != "1":
            raise UserError(
                f"mpirun has started {environment[name]} processes ({name}), and each would be a "
                "separate run",
                valid="torchrun or srun around ATOM, or ATOM alone, which starts "
                f"launch.ranks itself (after mpirun: env -u {name} atom train …)",
            )
    return None


def _consistent(environment: Mapping[str, str], rank: str, size: str, names: Sequence[str]) -> int:
    """Return the world size after checking that rank and size are consistent."""
    number, ranks = environment[rank], environment[size]
    if not (number.isdecimal() and ranks.isdecimal() and int(number) < int(ranks)):
        raise UserError(
            f"{rank}={number} of {size}={ranks} is no rank",
            valid=f"{_remedy(names)}, or what torchrun or srun sets",
        )
    return int(ranks)


def _remedy(names: Sequence[str]) -> str:
    return f"env {' '.join(f'-u {name}' for name in names)} atom train … if nothing started ranks"


def refuse_other_ranks(run: Run, ranks: int) -> None:
    """Refuse a ``launch.ranks`` that differs from the number of ranks already started.

    Raises:
        UserError: ``launch.ranks`` is a different number.
    """
    if run.launch.ranks in (None, ranks):
        return
    names = _TORCHRUN if "RANK" in os.environ else ("SLURM_PROCID",)
    source = "WORLD_SIZE" if "RANK" in os.environ else "SLURM_NTASKS"
    raise UserError(
        f"{source} in the environment says that {ranks} rank{'s were' if ranks > 1 else ' was'} "
        "started around ATOM",
        valid=f"null, or {_remedy(names)}",
        key="launch.ranks",
        value=run.launch.ranks,
    )


def adopt_slurm(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Set torch's environment variables from those of ``srun``; keep torchrun's unchanged."""
    if "RANK" in environment:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    per_node = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    environment["LOCAL_WORLD_SIZE"] = per_node[0] if per_node else "1"
    environment.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
    # Each job needs its own port, in case two share a machine: above the well-known ports and below
    # the ephemeral ones.
    port = 16384 + int(environment.get("SLURM_JOB_ID", "0")) % 16384
    environment.setdefault("MASTER_PORT", str(port))


def train(compose: Callable[[], Preflight | None], *, verbose: bool = False) -> int:
    """Run one rank.

    Args:
        compose: composes the run and writes its folder; called on rank 0 only. It returns None if
            nothing is left to train.
        verbose: show torchtitan's own log of rank 0.

    Returns:
        The exit code.

    Raises:
        UserError: on rank 0; the other ranks return 2 without a message.
    """
    from atom.launch import rank

    adopt_slurm()
    store, number = _meet()
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
    with (
        evaluations.in_background(ready.place, ready.run.evaluation, ready.steps),
        recorded(ready.place, ready.resolved.world_size),
        _followed(ready, verbose=verbose),
    ):
        rank.train(ready.place, verbose=verbose)
        refuse_stopped(ready.place)
    return 0


def _meet() -> tuple[Store, int]:
    """Wait for all ranks; return their shared store and this process's rank.

    Raises:
        RunError: not all ranks arrived.
    """
    from torch.distributed import DistError

    environment = os.environ
    set_to = ", ".join(f"{name}={environment[name]}" for name in (*_TORCHRUN[:2], *_ADDRESS))
    others = "the other ranks" if environment["RANK"] == "0" else "rank 0"
    slurm = "SLURM_PROCID" in environment and "TORCHELASTIC_RUN_ID" not in environment
    left_over = _remedy(("SLURM_PROCID",) if slurm else _TORCHRUN)
    seconds = _seconds(environment.get(JOIN_SECONDS, str(_MEETING.total_seconds())))

    def tell() -> None:
        print(
            f"atom: waiting for {others}, at most {seconds:.0f} s ({set_to}); {left_over}",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(min(_PATIENCE, seconds / 2), tell)
    timer.daemon = True
    if environment["RANK"] == "0" or environment.get("LOCAL_RANK") == "0":
        timer.start()
    try:
        store = _store(seconds)
    except (DistError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].partition(" Exception raised")[0]
        raise RunError(
            f"{others} did not join within {seconds:.0f} s ({set_to}; {reason}); {left_over}"
        ) from None
    finally:
        timer.cancel()
    return store, int(environment["RANK"])


def _store(seconds: float) -> Store:
    """Return the store at ``MASTER_ADDR``, served by torchrun's agent or by rank 0.

    torch would make rank 0 listen on all interfaces. A socket that this process already listens on
    is used instead.
    """
    from torch.distributed import rendezvous

    environment = os.environ
    served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    if environment["RANK"] == "0" and not served:
        host, port = (environment[name] for name in _ADDRESS)
        return tcp_store(
            host, int(port), int(environment["WORLD_SIZE"]), listen=True, seconds=seconds
        )
    until = time.monotonic() + seconds
    _wait_for_a_listener(until)
    left = max(until - time.monotonic(), 1.0)
    store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=left)))
    return store


def _wait_for_a_listener(until: float) -> None:
    """Wait until a server listens at ``MASTER_ADDR``.

    Without this, torch prints a C++ stack trace when no server listens.

    Raises:
        OSError: no server listens in time.
    """
    host, port = (os.environ[name] for name in _ADDRESS)
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=_LOOK_SECONDS):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise OSError(f"{host}:{port}: {error.strerror or error}") from None
        time.sleep(_LOOK_SECONDS)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e6:
        raise UserError(f"{JOIN_SECONDS}={text} is not a number of seconds")
    return seconds


@contextmanager
def recorded(place: Path, ranks: int) -> Iterator[None]:
    """Record that ``ranks`` ranks started, and how they ended if rank 0 is alive to see it."""
    # torchrun exports its restart count and the maximum.
    counts = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in _RESTARTS)
    done, limit = (int(count) if count.isdecimal() else 0 for count in counts)
    begin = time.time()
    events.record(place, events.STARTED, ranks=ranks, attempt=done + 1)
    try:
        yield
    except RunStoppedError:
        raise
    except Exception as error:
        events.record(
            place,
            events.FAILED,
            reason=f"rank 0 failed: {type(error).__name__}: {error}",
            rank=0,
            step=progress.since(place, begin),
            restart=done < limit,
        )
        raise
    progress.finish(place)


@contextmanager
def _followed(ready: Preflight, *, verbose: bool) -> Iterator[None]:
    """Draw the run's progress in a thread of rank 0 while the context is open."""
    # The rank redirects its own standard output to a file.
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
