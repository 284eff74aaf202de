"""``atom train``: compose a run, start its ranks, show what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from atom import compose, folder, metrics
from atom.errors import UserError
from atom.host import Host
from atom.launch import joined, local
from atom.launch.child import Child, call
from atom.plugin import PreparedTokenizer
from atom.prepare import prepare
from atom.run import Run
from atom.screen import Header, Screen
from atom.select import select

if TYPE_CHECKING:
    from atom.titan.preflight import Preflight

METRICS = "metrics.jsonl"


def main(argv: list[str]) -> int:
    """Run ``atom train`` with Hydra's command line; return the exit code."""
    verbose = "-v" in argv
    arguments = [argument for argument in argv if argument != "-v"]
    host = Host.load()
    if joined.world_size() is not None:
        return joined.train(partial(_compose_for_all, arguments, host), _draw)

    def job(run: Run) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _sweep_job(run, host, verbose)
        else:
            train(run, host, run.run.dir or folder.default(), verbose=verbose)

    compose.main(arguments, partial(_with_origins, host=host, job=job), host)
    return 0


def _with_origins(config: DictConfig, *, host: Host, job: Callable[[Run], None]) -> None:
    """Compose ``config`` and do ``job``; let a mistake say where its value came from."""
    run = compose.run_of(config, host)
    origins = compose.Origins(config)
    try:
        job(run)
    except UserError as error:
        origins.attach(error)
        raise


def _compose_for_all(arguments: list[str], host: Host) -> Path:
    """Compose the run of ranks that were started around ATOM; return its folder."""
    places: list[Path] = []

    def job(run: Run) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("a sweep starts its own ranks: run it outside torchrun and srun")
        place = run.run.dir or folder.default()
        ready, tokenizer = check(run, host, place, ranks=joined.world_size())
        write(in_folder(ready.run, place), ready, host, tokenizer, Screen())
        places.append(place)

    compose.main(arguments, partial(_with_origins, host=host, job=job), host)
    return places[0]


def _draw(place: Path, terminal: IO[str]) -> None:
    screen = Screen(stream=terminal)
    for step in metrics.follow(place / METRICS, stop=lambda: False, from_now=True):
        screen.step(step)


def _sweep_job(run: Run, host: Host, verbose: bool) -> None:
    """Run one job of a sweep, in a child: each starts its ranks from a process without threads."""
    hydra = HydraConfig.get()
    place = run.run.dir or Path(hydra.sweep.dir, hydra.sweep.subdir)
    print(f"run {hydra.job.num}: {hydra.job.override_dirname or 'as configured'}", flush=True)
    call(partial(train, run, host, place, verbose=verbose))


def train(run: Run, host: Host, place: Path, *, verbose: bool = False) -> None:
    """Train ``run`` in the folder ``place``, on ranks of this machine.

    Raises:
        UserError: the run cannot be, and nothing has been written.
        RunError: a rank failed.
    """
    ready, tokenizer = check(run, host, place, ranks=None)
    run = in_folder(ready.run, place)
    screen = Screen(verbose=verbose)
    write(run, ready, host, tokenizer, screen)
    assert run.resolved is not None
    begin = time.monotonic()
    ranks = Child(
        partial(local.start, place, run.resolved.world_size, run.resolved.device, verbose=verbose)
    )
    try:
        screen.starting(f"starting {run.resolved.world_size} ranks")
        for step in metrics.follow(place / METRICS, stop=lambda: not ranks.working(), from_now=True):
            screen.step(step)
        ranks.result()
    except KeyboardInterrupt:
        ranks.terminate()
        raise
    finally:
        screen.close()
    screen.summary(metrics.read(place / METRICS), str(place), time.monotonic() - begin)


def check(
    run: Run, host: Host, place: Path, *, ranks: int | None
) -> tuple[Preflight, PreparedTokenizer]:
    """Find out everything that can be known of ``run`` before there are ranks.

    ``ranks`` is how many a launcher around ATOM has started, if one has.
    """
    folder.check_usable(place)
    selection = select(run, host)
    tokenizer = call(partial(prepare, selection))
    # Only now is torch needed: what is wrong so far was said within a second.
    from atom.titan.preflight import preflight

    ready = preflight(run, selection, host, vocab_size=tokenizer.vocab_size, joined=ranks)
    return ready, tokenizer


def write(
    run: Run, ready: Preflight, host: Host, tokenizer: PreparedTokenizer, screen: Screen
) -> None:
    """Write the run's folder and show its header."""
    place = run.run.dir
    assert place is not None
    resumed_from = folder.check_continues(place, run)
    folder.create(place, run, host, tokenizer.files)
    screen.header(_header(ready, run, place, resumed_from))


def in_folder(run: Run, place: Path) -> Run:
    """Return ``run`` with its folder written into it."""
    return run.model_copy(update={"run": run.run.model_copy(update={"dir": place})})


def _header(ready: Preflight, run: Run, place: Path, resumed_from: int | None) -> Header:
    resolved = run.resolved
    assert resolved is not None
    degrees = resolved.degrees
    seq_len = ready.seq_len
    tokens = resolved.global_batch_size * seq_len
    batch = f"{resolved.global_batch_size} sequences x {seq_len} tokens = {tokens:,} tokens a step"
    return Header(
        run_dir=str(place),
        model=_chosen(run.architecture.name, "architecture"),
        parameters=ready.parameters,
        tokenizer=_chosen(run.tokenizer.name, "tokenizer"),
        vocab_size=resolved.vocab_size,
        dataset=_chosen(run.dataset.name, "dataset"),
        device=resolved.device,
        ranks=resolved.world_size,
        layout=[
            ("dp_replicate", degrees["data_parallel_replicate_degree"]),
            ("dp_shard", degrees["data_parallel_shard_degree"]),
            ("tp", degrees["tensor_parallel_degree"]),
            ("pp", degrees["pipeline_parallel_degree"]),
            ("cp", degrees["context_parallel_degree"]),
        ],
        schedule=ready.schedule,
        batch=batch,
        steps=ready.steps,
        kernels=[(operation, kernel) for operation, (kernel, _) in ready.kernels.items()],
        resumed_from=resumed_from,
    )


def _chosen(component: str, group: str) -> str:
    """Return the group's option beside the component's name: ``llama3_tiny (llama3)``."""
    option = HydraConfig.get().runtime.choices.get(group)
    return f"{option} ({component})" if option and option != component else component
