"""``atom train``: compose the jobs of a Hydra command line, and run each of them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from atom.compose import compose, plugin_lists
from atom.errors import UserError
from atom.io.process import call
from atom.io.terminal import say
from atom.launch import joined, start, submit
from atom.plugin import Dataset, LaunchJob, Optimizer
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import check_callbacks, select, written_out
from atom.run_dir import branch, folder, objective, resume
from atom.run_dir.prepare import prepare
from atom.watch import mixture_rows

if TYPE_CHECKING:
    from atom.titan.preflight.preflight import Preflight


def main(argv: list[str]) -> int:
    """Run ``atom train``; return the exit code."""
    verbose = "-v" in argv
    arguments = ["dry_run=true" if a == "--dry-run" else a for a in argv if a != "-v"]
    host = Host.load(plugin_lists.trust(arguments))
    ranks = joined.world_size()
    if ranks is not None:
        return joined.train(partial(_compose_for_all, arguments, host, ranks), verbose=verbose)

    submitted = _Submitted(host)

    def job(run: Run) -> float | None:
        choices = _choices()
        if run.dry_run or run.launcher.name is not None:
            _refuse_search(run, choices)
        if run.dry_run:
            # In a child process, for sweeps: torchtitan supports one device per process.
            call(partial(_dry_run, run, host))
            return None
        if run.launcher.name is not None:
            submitted.add(run, choices)
            return None
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            hydra = HydraConfig.get()
            place = Path(run.run.dir or hydra.sweep.dir, hydra.sweep.subdir)
            say(f"run {hydra.job.num} in {place}")
            # In a child process: each run has to start its ranks from a process without threads.
            call(partial(start.train, run, host, place, choices, verbose=verbose))
            return objective.measured(run, place)
        start.train(run, host, run.run.dir or folder.default(), choices, verbose=verbose)
        return None

    compose.main(arguments, partial(compose.do, host=host, job=job), host)
    submitted.submit()
    return 0


def _refuse_search(run: Run, choices: dict[str, str]) -> None:
    """Refuse jobs without results in a sweep that searches for the best run."""
    sweeper = choices.get("hydra/sweeper", "basic")
    if HydraConfig.get().mode == RunMode.MULTIRUN and sweeper != "basic":
        raise UserError(
            f"has no results for hydra/sweeper={sweeper} to compare; valid: "
            + ("false" if run.dry_run else "launcher=local"),
            key="dry_run" if run.dry_run else "launcher.name",
            value=True if run.dry_run else run.launcher.name,
        )


class _Submitted:
    """The runs to submit to a launcher; all runs of a sweep form one submission."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._jobs: list[LaunchJob] = []
        self._run: Run | None = None
        self._place = Path()

    def add(self, run: Run, choices: dict[str, str]) -> None:
        """Check a run and write its folder."""
        submit.check(run, self._host)
        place = run.run.dir or folder.default()
        self._place = place
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            hydra = HydraConfig.get()
            self._place = Path(hydra.sweep.dir)
            place = Path(run.run.dir or hydra.sweep.dir, hydra.sweep.subdir)
        if self._run is not None and self._run.launcher != run.launcher:
            raise UserError("a sweep is one submission, so its runs have the same launcher")
        self._run = run
        # In a child process: its lock on the folder ends with it, so that the job can lock the
        # folder.
        job = call(partial(submit.prepare, run, self._host, place, choices))
        if job is not None:
            self._jobs.append(job)

    def submit(self) -> None:
        """Submit the added runs that have something left to train, if any."""
        if self._run is not None and self._jobs:
            submit.submit(self._jobs, self._run, self._host, self._place)


def _dry_run(run: Run, host: Host) -> None:
    """Print the plan of ``run``.

    Raises:
        UserError: the run is invalid, or does not fit in memory; raised after the plan is printed.
    """
    selection = select(run, host)
    check_callbacks(run, selection)
    run = written_out(run, selection)
    place = run.run.dir or folder.default()
    # Only a branch: a plan of another layout may have the folder of a run that exists.
    run = branch.with_origin(place, run)
    prepared = call(partial(prepare, selection, run))
    resumption = None
    if run.resume.origin is not None:
        run = resume.with_order(place, run)
        resumption = resume.check(
            place,
            run,
            prepared.inputs,
            dataset=selection[Dataset],
            optimizer=selection[Optimizer],
        )
    from atom.titan.preflight.dry_run import dry_run
    from atom.titan.preflight.dry_run_report import report

    found = dry_run(
        run,
        selection,
        host,
        tokenizer=prepared.tokenizer,
        contents=prepared.contents,
        resumption=resumption,
    )
    data = mixture_rows.data(run.dataset.name, found.ready.resolved)
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(report(found, data, ascii_only=ascii_only), end="", flush=True)
    found.check()


def _compose_for_all(arguments: list[str], host: Host, ranks: int) -> Preflight | None:
    """Compose a run and write its folder, for ranks that an external launcher has started.

    Returns:
        The run; None if nothing is left to train.
    """
    composed: list[Preflight | None] = []

    def job(run: Run) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("a sweep starts its own ranks: run it outside torchrun and srun")
        if run.dry_run:
            raise UserError(
                "starts no ranks: run it outside torchrun and srun", key="dry_run", value=True
            )
        if run.launcher.name is not None:
            raise UserError(
                "submits a run: use it outside torchrun and srun",
                key="launcher.name",
                value=run.launcher.name,
            )
        for name, value in run.launch:
            if name != "ranks" and value != type(run.launch).model_fields[name].default:
                raise UserError(
                    "has no effect under torchrun and srun, which start the ranks themselves; "
                    "leave it out",
                    key=f"launch.{name}",
                    value=value,
                )
        joined.refuse_other_ranks(run, ranks)
        place = run.run.dir or folder.default()
        composed.append(start.prepare_folder(run, host, place, _choices(), ranks=ranks))

    compose.main(arguments, partial(compose.do, host=host, job=job), host)
    if not composed:
        raise UserError(
            "nothing to train: --cfg, --info and --help belong outside torchrun and srun"
        )
    return composed[0]


def _choices() -> dict[str, str]:
    """Return the option chosen for each group, such as ``architecture: llama3_tiny``."""
    return {group: str(option) for group, option in HydraConfig.get().runtime.choices.items()}
