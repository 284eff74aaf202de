"""``launcher=skypilot``: a task that SkyPilot runs as a managed job, on any cloud."""

from __future__ import annotations

import shlex
from typing import Any

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom_launchers import manifest
from atom_launchers.config import SkyPilot

_STOPPED = 75
"""Exit code of a machine: stopped with a checkpoint, ready to resume."""

_AGAIN = 76
"""Exit code of a machine: failed, and a restart may help."""

_NAMES = {"a100": "A100-80GB"}
"""SkyPilot's names of GPUs, if different from ours in capitals."""


def plan(config: SkyPilot, context: LaunchContext) -> Submission:
    """Return one task per run, and the commands that launch them.

    Raises:
        UserError: SkyPilot does not support the requested resources.
    """
    _check(config, context)
    files = {}
    for number, job in enumerate(context.jobs):
        file = "skypilot.yaml" if len(context.jobs) == 1 else f"skypilot-{number}.yaml"
        comment = f"Made by `atom train launcher=skypilot`; `sky jobs launch {file}` submits it."
        files[file] = manifest.dump(comment, _task(config, context, job, number))
    passed = (w for name in context.resources.pass_environment for w in ("--secret", name))
    launch = ("sky", "jobs", "launch", "--yes", "--detach-run", *passed, *config.arguments)
    return Submission(
        files=files,
        commands=tuple((*launch, file) for file in files),
        advice="sky jobs queue lists jobs, and sky jobs logs shows what one prints",
        reason=reason,
    )


def reason(errors: str) -> str:
    """Return why no job was submitted, in SkyPilot's words."""
    return f"SkyPilot refuses the job: {' '.join(errors.split()) or 'no reason given'}"


def _check(config: SkyPilot, context: LaunchContext) -> None:
    resources = context.resources
    manifest.refuse(context, "SkyPilot", "queue", "account")
    if resources.gpus_per_node and not (config.accelerator or resources.gpu):
        raise UserError(
            "is needed, because SkyPilot requests GPUs by name",
            valid="a100, b200, h100 or h200, or launcher.accelerator=NAME",
            key="launcher.gpu",
        )
    if config.bucket is not None and resources.nodes > 1:
        raise UserError(
            "cannot hold the run of several machines, because each machine writes to its own cache",
            valid="null, and a volume that holds the run, as in launcher.mounts='[VOLUME:/runs]'",
            key="launcher.bucket",
            value=config.bucket,
        )
    for job in context.jobs:
        if "$" in str(job.folder):
            raise UserError(
                "contains $, which SkyPilot replaces by a variable",
                valid="a name without $",
                key="run.dir",
                value=job.folder,
            )
        volumes = [target for source, target in manifest.mounts(context) if _is_volume(source)]
        if config.bucket is None and not any(manifest.holds(path, job.folder) for path in volumes):
            raise UserError(
                "would be lost with the machines",
                valid="launcher.bucket=NAME, or a folder in a "
                f"volume of SkyPilot's, as in launcher.mounts='[VOLUME:{job.folder.parent}]'",
                key="run.dir",
                value=job.folder,
            )


def _is_volume(source: str) -> bool:
    """Return whether ``source`` names a volume, not a local folder or a bucket's address."""
    return not set(source) & set("/~.:")


def _task(config: SkyPilot, context: LaunchContext, job: LaunchJob, number: int) -> dict[str, Any]:
    name = manifest.name(job.folder)
    mounts = manifest.mounts(context)
    files: dict[str, Any] = {target: source for source, target in mounts if not _is_volume(source)}
    files[f"~/.atom/{name}"] = str(job.folder)
    if config.bucket is not None:
        bucket = config.bucket if len(context.jobs) == 1 else f"{config.bucket}-{number}"
        # The mode MOUNT cannot append to files, but metrics and events are appended.
        files[str(job.folder)] = {"name": bucket, "mode": "MOUNT_CACHED"}
        if config.store is not None:
            files[str(job.folder)]["store"] = config.store
    volumes = {target: source for source, target in mounts if _is_volume(source)}
    task: dict[str, Any] = {
        "name": name,
        "num_nodes": context.resources.nodes,
        "resources": manifest.added(
            _resources(config, context), config.resources, "launcher.resources"
        ),
        "envs": context.resources.environment,
        "volumes": volumes,
        "file_mounts": files,
        "setup": "\n".join([*config.setup, f"{_word(config)} -c 'import atom' || exit 2", ""]),
        "run": _script(config, context, job),
    }
    return {key: value for key, value in task.items() if value}


def _resources(config: SkyPilot, context: LaunchContext) -> dict[str, Any]:
    resources = context.resources
    gpu = resources.gpu or ""
    accelerator = config.accelerator or _NAMES.get(gpu, gpu.upper())
    values: dict[str, Any] = {
        "infra": config.infra,
        "accelerators": f"{accelerator}:{resources.gpus_per_node}"
        if resources.gpus_per_node
        else None,
        "cpus": f"{resources.cpus_per_node}+" if resources.cpus_per_node else None,
        "memory": config.memory,
        "use_spot": config.use_spot,
        "image_id": resources.image and f"docker:{resources.image.removeprefix('docker:')}",
        # A lost machine is always replaced; of all exit codes, only these two request a restart.
        "job_recovery": {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [_STOPPED, _AGAIN],
        },
    }
    return {key: value for key, value in values.items() if value is not None}


def _word(config: SkyPilot) -> str:
    return shlex.quote(config.python)


_FIRST = """\
# SkyPilot keeps the id of a job that it starts again.
attempt=1
starts=$run/skypilot_starts.txt
if [[ $SKYPILOT_NODE_RANK == 0 ]]; then
  before=$(grep -cxF -- "$SKYPILOT_TASK_ID" "$starts" 2> /dev/null)
  if ((before > {restarts})); then
    echo "atom: not restarted: $before starts did not help" >&2
    exit 2
  elif ((before > 0)); then
    {python} -P -m atom.launch.verdict "$run"
    case $? in 0 | 75 | 76) ;; *) exit 2 ;; esac
  else
    # What was trained elsewhere stays; the settings are those of this job.
    mkdir -p "$run"
    cp -rn "$composed/." "$run"
    cp "$composed/run.yaml" "$composed/lock.json" "$run" || exit 2
  fi
  ((attempt = before + 1))
  echo "$SKYPILOT_TASK_ID" >> "$starts"
fi
# The first machine puts the run in its place.
until grep -qxF -- "$SKYPILOT_TASK_ID" "$starts" 2> /dev/null; do sleep 1; done
"""


def _script(config: SkyPilot, context: LaunchContext, job: LaunchJob) -> str:
    """Return the bash script of each machine."""
    command = [config.python, *job.command[1:]]
    if context.resources.time is not None:
        limit = str(manifest.seconds(context.resources.time))
        command = ["timeout", "--foreground", "--preserve-status", "-s", "USR1", limit, *command]
    lines = [
        f"run={shlex.quote(str(job.folder))}",
        f"composed=$HOME/.atom/{manifest.name(job.folder)}",
        *context.resources.before,
        _FIRST.format(restarts=config.restarts, python=_word(config)).rstrip(),
        'mapfile -t addresses <<< "$SKYPILOT_NODE_IPS"',
        f'{shlex.join(command)} "$run" \\',
        '  --nodes "$SKYPILOT_NUM_NODES" --node "$SKYPILOT_NODE_RANK" \\',
        f'  --endpoint "${{addresses[0]}}:{config.port}" --attempt "$attempt"',
        "code=$?",
        "# 1 is a failure that another start may help; any program may end with it.",
        f"((code == 1)) && code={_AGAIN}",
        'exit "$code"',
    ]
    return "\n".join([*lines, ""])
