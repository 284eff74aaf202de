"""``launcher=slurm``: a readable batch script, and ``sbatch`` to submit it."""

from __future__ import annotations

import hashlib
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom_launchers import manifest
from atom_launchers.config import Slurm

SCRIPT = "submit.sh"

_ERROR = re.compile(r"(?:sbatch|srun): (?:fatal|error): ")
_BATCH_FAILED = "Batch job submission failed: "


def plan(config: Slurm, context: LaunchContext) -> Submission:
    """Return the script, and the command that submits it.

    Raises:
        UserError: Slurm does not support the requested resources.
    """
    job = context.jobs[0]
    if any((other.ranks, other.device) != (job.ranks, job.device) for other in context.jobs):
        raise UserError(
            "the runs of a sweep, which is one job array, must have equal numbers of ranks"
        )
    if any(re.search(r"[\n%\\]", str(other.folder)) for other in context.jobs):
        raise UserError(
            "Slurm cannot write to a folder with %, \\ or a line break in its name",
            key="run.dir",
            value=job.folder,
        )
    if context.resources.mounts and context.resources.image is None:
        raise UserError(
            "apply only to a container, and there is none",
            valid="[], or a launcher.image",
            key="launcher.mounts",
            value=context.resources.mounts,
        )
    links = config.check_nodes and _check_links(config, context)
    if config.min_link_gb_per_second and not links:
        raise UserError(
            "has no effect without the check of links",
            valid="0, or launcher.check_nodes=true and launcher.check_links=true",
            key="launcher.min_link_gb_per_second",
            value=config.min_link_gb_per_second,
        )
    values = {
        "options": "\n".join(f"#SBATCH {option}" for option in _options(config, context, job)),
        "folder": _folder(context),
        "nodes": str(context.resources.nodes),
        "environment": _environment(context),
        "srun": shlex.join([*_container_options(config, context), *config.srun]),
        "begin": shlex.quote(_begin(config, context, job)),
        "node": shlex.join(job.command),
        "python": shlex.quote(context.python),
        "script": shlex.quote(str(context.place / SCRIPT)),
        "check": "true" if config.check_nodes else "false",
        "links": "true" if _check_links(config, context) else "false",
        "least": f"{config.min_link_gb_per_second:g}",
        "gpus": str(context.resources.gpus_per_node or 0),
        "disk": f"{config.min_disk_gib:g}",
    }
    template = (files("atom_launchers") / "slurm.sh").read_text()
    return Submission(
        files={SCRIPT: filled_in(template, values)},
        commands=(("sbatch", SCRIPT),),
        advice=f"output in {context.jobs[0].folder}/logs/slurm-JOB.out; squeue --me lists jobs",
        reason=reason,
    )


def name(place: Path) -> str:
    """Return a unique name of a folder for jobs."""
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', place.name)}-{digest}"


def place(resources: Any, config: Slurm) -> dict[str, str | int | None]:
    """Return the options that say where and how long a job may run."""
    return {
        "time": resources.time,
        "partition": resources.queue,
        "account": resources.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "exclude": config.exclude,
    }


def filled_in(template: str, values: dict[str, str]) -> str:
    """Replace ``@NAME@`` by values; drop a line that consists of an empty value."""

    def value(match: re.Match[str]) -> str:
        if match["line"] is None:
            return values[match["word"]]
        return f"{values[match['line']]}\n" if values[match["line"]] else ""

    return re.sub(r"^@(?P<line>\w+)@\n|@(?P<word>\w+)@", value, template, flags=re.MULTILINE)


def reason(errors: str) -> str:
    """Return why Slurm refuses a job, in its words."""
    lines = [_ERROR.sub("", line).strip() for line in errors.splitlines() if line.strip()]
    said = [line.removeprefix(_BATCH_FAILED) for line in lines if line.startswith(_BATCH_FAILED)]
    others = [line for line in lines if not line.startswith(_BATCH_FAILED)]
    words = ": ".join([*said, *others]) or "no reason given"
    return f"Slurm refuses the job: {words}"


def _check_links(config: Slurm, context: LaunchContext) -> bool:
    if config.check_links is not None:
        return config.check_links
    return bool(context.resources.gpus_per_node)


def _options(config: Slurm, context: LaunchContext, job: LaunchJob) -> list[str]:
    resources = context.resources
    sweep = len(context.jobs) > 1
    logs = f"{context.place}/slurm-%A_%a.out" if sweep else f"{job.folder}/logs/slurm-%j.out"
    values: dict[str, str | int | None] = {
        "job-name": f"atom-{name(context.place)}",
        "nodes": resources.nodes + config.spares,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_node,
        "gpus-per-node": resources.gpus_per_node,
        **place(resources, config),
        "output": f'"{logs}"' if " " in logs else logs,
        "open-mode": "append",
        "signal": f"B:USR1@{config.signal_seconds}",
    }
    if sweep:
        limit = f"%{config.parallel_jobs}" if config.parallel_jobs else ""
        values["array"] = f"0-{len(context.jobs) - 1}{limit}"
    else:
        # Jobs of one folder have the same name and must not run at the same time.
        values["dependency"] = "singleton"
    options = [f"--{key}={value}" for key, value in values.items() if value is not None]
    options += ["--requeue"]
    options += ["--exclusive", "--mem=0"] if config.exclusive else []
    options += ["--no-kill"] if config.spares else []
    return [*options, *config.arguments]


def _folder(context: LaunchContext) -> str:
    if len(context.jobs) == 1:
        return f"folder={shlex.quote(str(context.jobs[0].folder))}"
    listed = "\n".join(f"  {shlex.quote(str(job.folder))}" for job in context.jobs)
    return (
        f"folders=(\n{listed}\n)\n"
        "folder=${folders[$SLURM_ARRAY_TASK_ID]}\n"
        'exec >> "$folder/logs/slurm-$SLURM_JOB_ID.out" 2>&1'
    )


def _environment(context: LaunchContext) -> str:
    return "\n".join(manifest.exports(context))


def _container_options(config: Slurm, context: LaunchContext) -> list[str]:
    resources = context.resources
    if resources.image is None or config.container != "pyxis":
        return []
    mounts = [*resources.mounts, *(f"{job.folder}:{job.folder}" for job in context.jobs)]
    return [f"--container-image={resources.image}", f"--container-mounts={','.join(mounts)}"]


def _begin(config: Slurm, context: LaunchContext, job: LaunchJob) -> str:
    """Return the start of a task; its command is ``"$@"``."""
    lines = ['trap "" USR1', *context.resources.before, 'set -- "$@" --node "$SLURM_PROCID"']
    return "\n".join([*lines, _exec(config, context, job)])


def _exec(config: Slurm, context: LaunchContext, job: LaunchJob) -> str:
    resources = context.resources
    if resources.image is None or config.container != "apptainer":
        return 'exec "$@"'
    mounts = [*resources.mounts, *(f"{each.folder}:{each.folder}" for each in context.jobs)]
    binds = [word for mount in mounts for word in ("--bind", mount)]
    gpus = ["--nv"] if job.device == "cuda" else []
    return f'exec {shlex.join(["apptainer", "exec", *gpus, *binds, resources.image])} "$@"'
