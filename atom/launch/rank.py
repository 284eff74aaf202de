"""What one rank does: read ``run.yaml``, build torchtitan's trainer, train."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import structlog

from atom.io import environment
from atom.io.process import die_with_parent
from atom.launch import rendezvous
from atom.launch.failure import RANK_FAILED
from atom.launch.gate import Gate
from atom.recipe.run import read
from atom.registry.host import Host
from atom.registry.select import select
from atom.registry.trust import Trust
from atom.run_dir import logs
from atom.run_dir.folder import RUN_FILE
from atom.titan.boot import boot
from atom.titan.compat import device
from atom.titan.compat.frames import call_with_room
from atom.titan.train import hang

_SWITCH_SECONDS = 5e-4
"""How long a thread that saves in the background may keep the one that trains from running Python:
each time that one comes back from a kernel. Python's own is ten times as long."""


def main(
    folder: str, store: str | None = None, verbose: bool = False, gate: Gate | None = None
) -> None:
    """Train as a rank that ATOM's own launcher started: it must not outlive the launcher.

    Args:
        folder: the run folder.
        store: the file that the ranks of one machine meet in; None where there are several.
        verbose: show torchtitan's own log of rank 0.
        gate: is open once all ranks have been started.
    """
    die_with_parent(signal.SIGKILL)
    if gate is not None:
        gate.pass_through()
    # Here a SIGTERM is the launcher's, which has lost another rank: nothing can be saved then. The
    # launcher's own handler, which came along with the fork, would wait for the interpreter.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    train(Path(folder), store=store, verbose=verbose, stop_on=(signal.SIGUSR1,))


def train(
    path: Path,
    *,
    store: str | None = None,
    verbose: bool = False,
    stop_on: tuple[signal.Signals, ...] = (signal.SIGUSR1, signal.SIGTERM),
) -> bool:
    """Train as the rank that the environment (``RANK``, ``WORLD_SIZE``, …) says this process is.

    Args:
        path: the run folder.
        store: the file that the ranks meet in; None to meet where the environment says.
        verbose: show torchtitan's own log of rank 0.
        stop_on: signals that ask for a checkpoint and an early end.

    Returns:
        Whether it ended early.
    """
    rank = int(os.environ["RANK"])
    logs.redirect_output(path / "logs", rank)
    logs.setup_rank(path / "logs", rank, verbose=verbose)
    hang.tell_on(signal.SIGUSR2, rank)
    try:
        return call_with_room(partial(_train, path, store, stop_on))
    except BaseException as error:
        words = traceback.format_exception_only(error)[-1].strip()
        structlog.get_logger("atom").exception(RANK_FAILED, error=words)
        raise


def _train(path: Path, store: str | None, stop_on: tuple[signal.Signals, ...]) -> bool:
    sys.setswitchinterval(_SWITCH_SECONDS)
    run = read(path / RUN_FILE)
    assert run.resolved is not None
    boot(run.resolved.device)

    import torch

    from atom.titan.train import profiling
    from atom.titan.train.stop import StopRequest
    from atom.titan.trainer_config import trainer_config

    if store is not None:
        rendezvous.use_file(Path(store))
    StopRequest.listen(*stop_on)
    if run.profile.window is not None:
        profiling.note_groups()

    if run.resolved.device == "cpu":
        device.keep_freed_memory()
        if not os.environ.get(environment.THREADS, "").strip():
            # Ranks share the cores; more threads than cores only wait for each other.
            local = int(os.environ.get("LOCAL_WORLD_SIZE", run.resolved.world_size))
            torch.set_num_threads(max(device.cores() // local, 1))

    host = Host.load(Trust.of_run(run.plugins))
    trainer = trainer_config(run, select(run, host), host, path).build()
    try:
        trainer.train()
    finally:
        trainer.close()
    # Python takes its own handlers away as it ends; a request that comes late must not kill.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.distributed.destroy_process_group()
    return trainer.stopped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m atom.launch.rank", description=__doc__)
    parser.add_argument("folder", help="the run folder")
    parser.add_argument("--store", help="the file that the ranks of one machine meet in")
    parser.add_argument("-v", dest="verbose", action="store_true", help="show torchtitan's log")
    return parser


if __name__ == "__main__":
    main(**vars(_parser().parse_args()))
