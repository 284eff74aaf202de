"""Submit a run to a launcher: check and write it here, start it on other machines."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from atom import plugin
from atom.errors import UserError, shown
from atom.io.files import read_text, write_text
from atom.io.lines import is_line
from atom.launch import start
from atom.launch.looked_at import LookedAt
from atom.plan.device import DeviceDescription, named
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom.recipe import defaults, scoring_layout
from atom.recipe.evaluation import LAYOUT
from atom.recipe.run import Run
from atom.redaction import REDACTED, found
from atom.registry.host import Host
from atom.registry.opening import Chosen, Opener

_SWEEP = "multirun.yaml"
"""File that Hydra writes into the folder of a sweep."""

COMMAND = (sys.executable, "-P", "-m", "atom.launch.node")
"""Command that each node runs; the run folder is appended."""

EVALUATE = (sys.executable, "-P", "-m", "atom.launch.evaluation_job")
"""Command that evaluates a checkpoint; the run folder and the step are appended."""


def prepare(run: Run, host: Host, place: Path, choices: dict[str, str]) -> LaunchJob | None:
    """Check ``run`` for its target machines, and write its folder.

    With ``launcher.dry_run=true`` nothing is written.

    Returns:
        The job; None if nothing is left to train, which is reported.

    Raises:
        UserError: the run is invalid or unsupported by the launcher; nothing has been written.
    """
    place = place.absolute()
    if not is_line(str(place)):
        raise UserError(
            "is written into scripts",
            valid="a name without line breaks and control characters",
            key="run.dir",
            value=str(place),
        )
    if run.launcher.gpus_per_node is None and run.device == "auto":
        run = run.model_copy(update={"device": "cpu"})
    ranks, planned = _ranks(run), _planned(run)
    if ranks is not None:
        run = run.model_copy(update={"launch": run.launch.model_copy(update={"ranks": ranks})})
    prepared = start.check(run, host, place, ranks=ranks, planned=planned)
    if prepared.done is not None:
        print(prepared.done.sentence(place), flush=True)
        return None
    resolved = prepared.ready.resolved
    if resolved.world_size % run.launcher.nodes:
        raise UserError(
            f"{resolved.world_size} ranks cannot be divided evenly",
            valid="a divisor",
            key="launcher.nodes",
            value=run.launcher.nodes,
        )
    job = LaunchJob(
        folder=place, ranks=resolved.world_size, device=resolved.device, command=COMMAND
    )
    # Plan now, so that the launcher reports errors early; the final plan is made for all jobs
    # together.
    submission = plan([job], run, host, place)
    _check_passed(run, submission)
    _refuse_ignored(submission.ignored, run)
    if not run.launcher.dry_run:
        for command in submission.commands:
            if shutil.which(command[0]) is None:
                raise _no_command(command[0])
        start.write(prepared, host, choices)
    return job


def submit(jobs: Sequence[LaunchJob], run: Run, host: Host, place: Path) -> None:
    """Submit jobs from :func:`prepare`, or print what would be submitted.

    Args:
        jobs: one job, or those of a sweep.
        run: any one of the runs; all use the same launcher.
        host: the plugins.
        place: the folder for the submission's files.

    Raises:
        UserError: the launcher cannot be used this way, or the scheduler refuses the submission.
    """
    submission = plan(jobs, run, host, place)
    secrets = list(found(dict(run.launcher), "launcher"))
    if run.launcher.dry_run:
        for name, text in submission.files.items():
            print(f"# {place.absolute() / name}\n{_without(text, secrets)}")
        for command in submission.commands:
            print(f"$ {_without(' '.join(command), secrets)}")
        if not submission.commands:
            print(submission.advice)
        return
    for name, text in submission.files.items():
        write_text(place / name, text, private=bool(secrets))
    if secrets:
        _tell(secrets, place, submission)
    for command in submission.commands:
        _run(command, place, submission)
    if submission.advice:
        print(submission.advice, flush=True)


def _check_passed(run: Run, submission: Submission) -> None:
    """Refuse an environment variable that would not reach the ranks."""
    written = [*submission.files.values(), submission.advice, *map(" ".join, submission.commands)]
    for name in run.launcher.pass_environment:
        if submission.commands and name not in os.environ:
            raise UserError(
                f"{name} is not set here",
                valid="variables of the shell that submits",
                key="launcher.pass_environment",
                value=name,
            )
        if not any(name in text for text in written):
            raise UserError(
                f"the launcher {run.launcher.name} does not pass variables by name",
                key="launcher.pass_environment",
                value=name,
            )
    for key, value in found(dict(run.launcher), "launcher"):
        if value == REDACTED:
            raise UserError("is the placeholder of a redacted secret", valid="the secret", key=key)


def _tell(secrets: Sequence[tuple[str, str]], place: Path, submission: Submission) -> None:
    """Report where secrets are written, and remove them from the files that Hydra writes of a
    sweep.
    """
    sweep = place / _SWEEP
    if sweep.is_file():
        write_text(sweep, _without(read_text(sweep), secrets), private=True)
    files = " and ".join(str(place / name) for name in submission.files)
    keys = ", ".join(dict.fromkeys(key for key, _ in secrets))
    print(
        f"{keys}: redacted in run.yaml; {files} holds what the job needs, and only you can read "
        "it. launcher.pass_environment=[NAME] writes no value at all",
        flush=True,
    )


def _without(text: str, secrets: Iterable[tuple[str, str]]) -> str:
    """Return text without secrets, both in plain and in shell-quoted form."""
    spelled = {form for _, secret in secrets for form in (secret, shlex.quote(secret))}
    for form in sorted(spelled, key=len, reverse=True):
        text = text.replace(form, REDACTED)
    return text


def plan(jobs: Sequence[LaunchJob], run: Run, host: Host, place: Path) -> Submission:
    """Return what the run's launcher would submit.

    Raises:
        UserError: the launcher does not support a setting, or did not read one.
    """
    resources = LookedAt(run.launcher)
    chosen = _launcher(run, host)
    evaluation = _evaluation(chosen, jobs, run, place)
    # The first machine submits evaluations while the run goes on.
    words = [shlex.join(command) for command in evaluation.commands]
    submits = ("--evaluate", *words) if words else ()
    context = LaunchContext(
        jobs=tuple(replace(job, command=(*job.command, *submits)) for job in jobs),
        place=place.absolute(),
        resources=resources,
        max_restarts=run.launch.max_restarts,
        python=sys.executable,
    )
    submission: Submission = chosen.call("plan", context)
    _refuse_ignored([f"launcher.{name}" for name in resources.missed()], run)
    return replace(submission, files={**submission.files, **evaluation.files})


def _evaluation(
    chosen: Chosen[plugin.Launcher], jobs: Sequence[LaunchJob], run: Run, place: Path
) -> Submission:
    """Return the job that evaluates a checkpoint; nothing if a process beside the run does."""
    if not run.evaluation.interval or chosen.declaration.evaluate is None:
        return Submission()
    layout = run.evaluation.layout
    ranks = scoring_layout.parse(layout, run, LAYOUT).ranks if layout is not None else 1
    context = LaunchContext(
        jobs=tuple(
            replace(job, ranks=ranks, device=run.evaluation.device, command=EVALUATE)
            for job in jobs
        ),
        place=place.absolute(),
        resources=LookedAt(run.launcher),
        max_restarts=0,
        python=sys.executable,
    )
    submission: Submission = chosen.call("evaluate", context)
    if len(submission.commands) != 1:
        raise ValueError(f"{chosen.declaration.evaluate} must return one command")
    return submission


def check(run: Run, host: Host) -> None:
    """Refuse an unknown launcher or an unknown launcher parameter, before any other check."""
    _launcher(run, host)


def _launcher(run: Run, host: Host) -> Chosen[plugin.Launcher]:
    return Opener(host, run.given).of_section(plugin.Launcher, run.launcher, "launcher")


def _refuse_ignored(keys: Iterable[str], run: Run) -> None:
    for key in keys:
        value, default = defaults.value(run, key), defaults.default(run, key)
        if value != default and run.given(key):
            raise UserError(
                f"has no effect with launcher.name={run.launcher.name}",
                valid=f"{shown(default)}, or leave it out",
                key=key,
                value=value,
            )


def _run(command: Sequence[str], place: Path, submission: Submission) -> None:
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise _no_command(command[0]) from None
    print(done.stdout, end="", flush=True)
    if done.returncode:
        said = submission.reason or (lambda errors: f"{command[0]} fails: {errors}")
        raise UserError(" ".join(said(done.stderr).split()))


def _no_command(name: str) -> UserError:
    return UserError(
        f"there is no command {name} on this machine",
        valid="launcher.dry_run=true, or a machine that has it",
        key="launcher",
    )


def _ranks(run: Run) -> int | None:
    """Return the number of ranks set by the resources; None if the layout determines it."""
    resources = run.launcher
    if resources.gpus_per_node is None:
        return run.launch.ranks
    ranks = resources.nodes * resources.gpus_per_node
    if run.launch.ranks not in (None, ranks):
        raise UserError(
            f"{resources.nodes} nodes of {resources.gpus_per_node} GPUs have {ranks} ranks",
            valid="null",
            key="launch.ranks",
            value=run.launch.ranks,
        )
    return ranks


def _planned(run: Run) -> DeviceDescription | None:
    """Return the device of the ranks, if this machine does not have it; None otherwise."""
    resources = run.launcher
    if resources.gpu is not None:
        if resources.gpus_per_node is None or run.device == "cpu":
            raise UserError(
                "applies only to ranks on GPUs",
                valid="null, or launcher.gpus_per_node=N with device=auto",
                key="launcher.gpu",
                value=resources.gpu,
            )
        return named(resources.gpu, key="launcher.gpu")
    if resources.gpus_per_node is None or run.device == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "is needed, as there is no GPU on this machine to choose kernels for: a100, b200, h100 "
            "or h200",
            key="launcher.gpu",
        )
    return None
