"""``atom train``: compose a run, start its ranks, show what they do."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from atom import compose, folder, logs, metrics
from atom.errors import UserError
from atom.host import Host
from atom.launch import child
from atom.prepare import prepare
from atom.run import Run
from atom.screen import Header, Screen
from atom.select import select

if TYPE_CHECKING:
    from atom.titan.preflight import Preflight


def main(argv: list[str]) -> int:
    """Run ``atom train`` with Hydra's command line; return the exit code."""
    verbose = "-v" in argv
    host = Host.load()
    compose.main(
        [argument for argument in argv if argument != "-v"],
        partial(_job, host=host, verbose=verbose),
        host,
    )
    return 0


def _job(config: DictConfig, *, host: Host, verbose: bool) -> None:
    run = compose.run_of(config, host)
    origins = compose.Origins(config)
    try:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _sweep_job(run, host, verbose)
        else:
            train(run, host, run.run.dir or folder.default(), verbose=verbose)
    except UserError as error:
        origins.attach(error)
        raise


def _sweep_job(run: Run, host: Host, verbose: bool) -> None:
    """Run one job of a sweep, in a child: each starts its ranks from a process without threads."""
    hydra = HydraConfig.get()
    place = run.run.dir or Path(hydra.sweep.dir, hydra.sweep.subdir)
    print(f"run {hydra.job.num}: {hydra.job.override_dirname or 'as configured'}", flush=True)
    child.call(partial(train, run, host, place, verbose=verbose))


def train(run: Run, host: Host, place: Path, *, verbose: bool = False) -> None:
    """Train ``run`` in the folder ``place``.

    Raises:
        UserError: the run cannot be; nothing has been written.
        RankError: a rank failed.
    """
    selection = select(run, host)
    tokenizer = child.call(partial(prepare, selection))
    screen = Screen(verbose=verbose)

    # From here on torch is needed.
    from atom.launch import local
    from atom.titan.preflight import preflight

    ready = preflight(
        run, selection, host, vocab_size=tokenizer.vocab_size, joined=None
    )
    run = ready.run.model_copy(update={"run": run.run.model_copy(update={"dir": place})})
    resumed_from = folder.check(place, run)
    folder.create(place, run, host, tokenizer.files)
    assert run.resolved is not None

    screen.header(_header(ready, run, place, resumed_from))
    screen.starting(f"starting {run.resolved.world_size} ranks")
    begin = time.monotonic()
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(screen, place, stop), daemon=True)
    # Started by the agent's own thread rules: the ranks are forked before this thread runs.
    try:
        follower.start()
        local.start(place, run.resolved.world_size, run.resolved.device, verbose=verbose)
    finally:
        stop.set()
        follower.join()
        screen.close()
    screen.summary(
        metrics.read(place / "metrics.jsonl"), str(place), time.monotonic() - begin
    )


def _follow(screen: Screen, place: Path, stop: threading.Event) -> None:
    for step in metrics.follow(place / "metrics.jsonl", stop, from_now=True):
        screen.step(step)
