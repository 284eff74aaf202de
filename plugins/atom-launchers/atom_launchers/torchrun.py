"""``launcher=torchrun``: the commands to start by hand, one on each machine."""

from __future__ import annotations

import shlex

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom.redaction import found
from atom_launchers import manifest
from atom_launchers.config import Torchrun

_UNWATCHED = ("launch.start_seconds", "launch.hang_seconds")
"""Keys without effect: torchrun watches processes, and does not notice a step that never ends."""


def plan(config: Torchrun, context: LaunchContext) -> Submission:
    """Return the commands as advice: nothing is submitted.

    Raises:
        UserError: a key needs a job system, which is missing here.
    """
    for key in ("cpus_per_node", "time", "queue", "account", "image", "mounts"):
        if (value := getattr(context.resources, key)) not in (None, []):
            raise UserError(
                "applies only to a scheduler, and these commands are started by hand",
                valid="leave it out",
                key=f"launcher.{key}",
                value=value,
            )
    for key, _ in found(context.resources.environment, "launcher.environment"):
        raise UserError(
            "is a secret by its name, and these commands are shown",
            valid=f"launcher.pass_environment=[{key.rpartition('.')[2]}]",
            key=key,
        )
    parts = [_commands(config, context, job) for job in context.jobs]
    return Submission(advice="\n\n".join(parts), ignored=_UNWATCHED)


def _commands(config: Torchrun, context: LaunchContext, job: LaunchJob) -> str:
    resources = context.resources
    nodes = resources.nodes
    torchrun = [
        context.python,
        *("-P", "-m", "torch.distributed.run"),
        f"--nnodes={nodes}",
        f"--nproc-per-node={job.ranks // nodes}",
        f"--max-restarts={context.max_restarts}",
        f"--rdzv-id={job.folder.name}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={config.host}:{config.port}",
        *("-m", "atom.launch.by_hand", str(job.folder)),
    ]
    lines = [f"# on each of {nodes} machines" if nodes > 1 else "# on the machine"]
    # torchrun starts ranks without -P, so they would import files from the current folder.
    lines.append("export PYTHONSAFEPATH=1")
    lines += manifest.exports(context)
    return "\n".join([*lines, *resources.before, shlex.join(torchrun)])
