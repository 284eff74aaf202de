"""The Slurm job that evaluates a checkpoint, which the run's own job submits."""

from __future__ import annotations

import shlex
from importlib.resources import files

from atom.errors import UserError
from atom.plugin import LaunchContext, Submission
from atom_launchers import manifest, slurm
from atom_launchers.config import Slurm

SCRIPT = "evaluate.sh"

_SUBMIT = (
    # The variables of the run's job would be options of this one.
    'for name in "${!SLURM_@}"; do [[ $name == SLURM_CONF ]] || unset "$name"; done; '
    'exec sbatch --output="$1/logs/evaluation-%j.out" SCRIPT "$@"'
)
"""Submit the script for a run folder and a step."""


def evaluate(config: Slurm, context: LaunchContext) -> Submission:
    """Return the script, and the command to which the run folder and the step are appended.

    Raises:
        UserError: the run's job cannot submit another one.
    """
    job, resources = context.jobs[0], context.resources
    if resources.image is not None:
        raise UserError(
            "is not possible in a container, where there is no sbatch",
            valid="0, and `atom eval` afterwards; or no launcher.image",
            key="evaluation.interval",
        )
    options = {
        "job-name": f"atom-eval-{slurm.name(context.place)}",
        "nodes": 1,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_node,
        "gpus-per-node": job.ranks if job.device == "cuda" else None,
        **slurm.place(resources, config),
        "open-mode": "append",
    }
    lines = [f"--{key}={value}" for key, value in options.items() if value is not None]
    lines += ["--exclusive", "--mem=0"] if config.exclusive else []
    values = {
        "options": "\n".join(f"#SBATCH {each}" for each in [*lines, *config.arguments]),
        "environment": "\n".join(manifest.exports(context)),
        "before": "\n".join(resources.before),
        "command": shlex.join(job.command),
    }
    template = (files("atom_launchers") / "slurm_evaluation.sh").read_text()
    submit = _SUBMIT.replace("SCRIPT", shlex.quote(str(context.place / SCRIPT)))
    return Submission(
        files={SCRIPT: slurm.filled_in(template, values)},
        commands=(("bash", "-c", submit, "evaluate"),),
    )
