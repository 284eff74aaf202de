"""Run one rank: read ``run.yaml``, build torchtitan's trainer, train."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

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
"""Longest time that a background checkpoint thread may hold the GIL while the training thread waits
for it after a kernel launch. Python's default is ten times as long."""


def main(
    folder: str,
    verbose: bool,
    finished: str,
    store: str | None = None,
    gate: Gate | None = None,
) -> None:
    """Train as a rank that ATOM's own launcher started; end when the launcher ends.

    Args:
        folder: the run folder.
        verbose: show torchtitan's own log of rank 0.
        finished: the folder where the rank leaves a file named by its number when it has finished.
            An exit code of 0 does not say so: any library can call ``exit``.
        store: the rendezvous file of the ranks of a single machine; None with several machines.
        gate: opens once all ranks have been started.
    """
    begin(gate)
    train(Path(folder), store=store, verbose=verbose, stop_on=(signal.SIGUSR1,))
    Path(finished, os.environ["RANK"]).touch()


def begin(gate: Gate | None) -> None:
    """Wait until all ranks of a launcher have been started; end when the launcher ends."""
    die_with_parent(signal.SIGKILL)
    if gate is not None:
        gate.pass_through()
    # A SIGTERM here comes from the launcher, which has lost another rank, so nothing can be saved.
    # The launcher's own handler, inherited through the fork, would wait for the interpreter.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def share_cpu(ranks: int) -> None:
    """Let this rank keep freed memory, and compute on its share of the cores.

    Args:
        ranks: the number of ranks; the environment may say how many are on this machine.
    """
    import torch

    device.keep_freed_memory()
    if not os.environ.get(environment.THREADS, "").strip():
        # More threads than cores only add contention.
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
        torch.set_num_threads(max(device.cores() // local, 1))


def train(
    path: Path,
    *,
    store: str | None = None,
    verbose: bool = False,
    stop_on: tuple[signal.Signals, ...] = (signal.SIGUSR1, signal.SIGTERM),
) -> bool:
    """Train as the rank that the environment (``RANK``, ``WORLD_SIZE``, …) assigns to this process.

    Args:
        path: the run folder.
        store: the rendezvous file; None to use the address from the environment.
        verbose: show torchtitan's own log of rank 0.
        stop_on: signals that request a checkpoint and an early end.

    Returns:
        True if the run ended early.
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
        share_cpu(run.resolved.world_size)

    host = Host.load(Trust.of_run(run.plugins))
    config: Any = trainer_config(run, select(run, host), host, path)
    if config.teaching is not None:
        from atom.titan.weights import teacher

        teacher.provide(config)
    trainer = config.build()
    try:
        trainer.train()
    finally:
        trainer.close()
    # Python removes its handlers as it exits; a late stop request must not kill the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.distributed.destroy_process_group()
    return trainer.stopped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m atom.launch.rank", description=__doc__)
    parser.add_argument("folder", help="the run folder")
    parser.add_argument("finished", help="the folder of the files of ranks that have finished")
    parser.add_argument("--store", help="the file that the ranks of one machine meet in")
    parser.add_argument("-v", dest="verbose", action="store_true", help="show torchtitan's log")
    return parser


if __name__ == "__main__":
    main(**vars(_parser().parse_args()))
