"""``launcher=kubernetes``: a JobSet with one pod per node, and ``kubectl`` to create it.

A JobSet (``jobset.x-k8s.io``), not a PyTorchJob or TrainJob: a TrainJob, Kubeflow's successor to
PyTorchJob, is converted to a JobSet; a JobSet needs one manifest and no runtime installed by an
administrator; and Kueue supports it.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom_launchers import manifest
from atom_launchers.config import Kubernetes

MANIFEST = "jobset.yaml"

_RESTARTS = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LOG_LINE = re.compile(r"[EWI]\d{4} ")
_PREFIX = re.compile(r"^(Error from server( \(\w+\))?|error): (error when creating \S+: )?")


def plan(config: Kubernetes, context: LaunchContext) -> Submission:
    """Return the manifest, one JobSet per run, and the command that creates it.

    Raises:
        UserError: Kubernetes does not support the requested resources.
    """
    _check(context)
    jobsets = [_jobset(config, context, job) for job in context.jobs]
    names = " ".join(jobset["metadata"]["name"] for jobset in jobsets)
    comment = (
        f"Made by `atom train launcher=kubernetes`; `kubectl create -f {MANIFEST}` submits it."
    )
    return Submission(
        files={MANIFEST: manifest.dump(comment, *jobsets)},
        commands=(("kubectl", "create", "-f", MANIFEST, *config.arguments),),
        advice=f"logs are in {context.jobs[0].folder}/logs; kubectl delete jobset {names} stops it",
        reason=reason,
    )


def reason(errors: str) -> str:
    """Return why nothing was created, in kubectl's words."""
    lines = [line.strip() for line in errors.splitlines() if not _LOG_LINE.match(line)]
    words = "; ".join(_PREFIX.sub("", line) for line in lines if line) or "no reason given"
    again = "already exists" in words
    hint = "; `kubectl delete jobset NAME` makes room for it, once that one has ended"
    return f"kubectl refuses the run: {words}{hint if again else ''}"


def _check(context: LaunchContext) -> None:
    resources = context.resources
    if resources.image is None:
        raise UserError(
            "is needed, because pods run images",
            valid="an image with ATOM and its plugins",
            key="launcher.image",
        )
    manifest.refuse(context, "Kubernetes", "account")
    if resources.pass_environment:
        raise UserError(
            "pods do not get the variables of this shell",
            valid="a Secret of the cluster, as in "
            "launcher.container='{env: [{name: NAME, valueFrom: {secretKeyRef: {name: SECRET, "
            "key: KEY}}}]}'",
            key="launcher.pass_environment",
            value=resources.pass_environment,
        )
    if resources.queue is not None and not _LABEL.fullmatch(resources.queue):
        raise UserError(
            "is not a valid name of a queue of Kueue",
            valid="up to 63 letters, digits, -, _ and .",
            key="launcher.queue",
            value=resources.queue,
        )
    mounts = manifest.mounts(context)
    for source, target in mounts:
        if not (source.startswith("/") or _CLAIM.fullmatch(source)) or ":" in target:
            raise UserError(
                "is not a volume",
                valid="CLAIM:/TARGET, or /FOLDER:/TARGET of the nodes",
                key="launcher.mounts",
                value=f"{source}:{target}",
            )
    for job in context.jobs:
        if not any(manifest.holds(target, job.folder) for _, target in mounts):
            raise UserError(
                "is not on a volume of the pods",
                valid="a folder in a TARGET of launcher.mounts, as "
                f"in launcher.mounts='[CLAIM:{job.folder.parent}]'",
                key="run.dir",
                value=job.folder,
            )


def _jobset(config: Kubernetes, context: LaunchContext, job: LaunchJob) -> dict[str, Any]:
    resources = context.resources
    metadata: dict[str, Any] = {"name": manifest.name(job.folder)}
    if config.namespace is not None:
        metadata["namespace"] = config.namespace
    if resources.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": resources.queue}
    metadata["annotations"] = {"atom-train/run": str(job.folder)}
    # A failure without a rule, such as a lost node, restarts all pods.
    rules: list[dict[str, Any]] = [
        {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    if resources.time is not None:
        rules.append(
            {
                "name": "time_limit",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["DeadlineExceeded"],
            }
        )
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": config.restarts, "rules": rules},
            "replicatedJobs": [
                {
                    "name": "node",
                    "replicas": 1,
                    "template": {"spec": _job(config, context, job)},
                }
            ],
        },
    }


def _job(config: Kubernetes, context: LaunchContext, job: LaunchJob) -> dict[str, Any]:
    resources = context.resources
    final = {"containerName": "node", "operator": "In", "values": [2]}
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": resources.nodes,
        "parallelism": resources.nodes,
        # No pod is replaced alone: its new ranks could not join the others.
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        # The first node succeeds when the run does.
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }
    if resources.time is not None:
        spec["activeDeadlineSeconds"] = manifest.seconds(resources.time)
    spec["template"] = {"spec": _pod(config, context, job)}
    return spec


def _pod(config: Kubernetes, context: LaunchContext, job: LaunchJob) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = []
    for number, (source, _) in enumerate(manifest.mounts(context)):
        kind: dict[str, Any] = {"persistentVolumeClaim": {"claimName": source}}
        if source.startswith("/"):
            kind = {"hostPath": {"path": source, "type": "Directory"}}
        volumes.append({"name": f"volume-{number}", **kind})
    memory: dict[str, Any] = {"medium": "Memory"}
    if config.shared_memory is not None:
        memory["sizeLimit"] = config.shared_memory
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": config.grace_seconds,
        "containers": [
            manifest.added(_container(config, context, job), config.container, "launcher.container")
        ],
        "volumes": [*volumes, {"name": "shared-memory", "emptyDir": memory}],
    }
    if context.resources.gpus_per_node:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return manifest.added(spec, config.pod, "launcher.pod")


def _container(config: Kubernetes, context: LaunchContext, job: LaunchJob) -> dict[str, Any]:
    resources = context.resources
    limits: dict[str, Any] = dict(config.extended_resources)
    if resources.gpus_per_node:
        limits["nvidia.com/gpu"] = resources.gpus_per_node
    if config.memory is not None:
        limits["memory"] = config.memory
    requests = {} if resources.cpus_per_node is None else {"cpu": resources.cpus_per_node}
    amounts = {"limits": limits, "requests": requests}
    variables = context.resources.environment.items()
    targets = [target for _, target in manifest.mounts(context)]
    return {
        "name": "node",
        "image": resources.image,
        "command": ["bash", "-c", _literal(_script(config, context, job))],
        "env": [
            {"name": "RESTARTS", "valueFrom": {"fieldRef": {"fieldPath": _RESTARTS}}},
            *({"name": variable, "value": _literal(value)} for variable, value in variables),
        ],
        "resources": {kind: amount for kind, amount in amounts.items() if amount},
        "volumeMounts": [
            *({"name": f"volume-{n}", "mountPath": target} for n, target in enumerate(targets)),
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }


def _script(config: Kubernetes, context: LaunchContext, job: LaunchJob) -> str:
    """Return the script of a pod; Kubernetes sets ``JOB_COMPLETION_INDEX`` to its node number."""
    name, run = manifest.name(job.folder), shlex.quote(str(job.folder))
    python = shlex.quote(config.python)
    lines = [
        *context.resources.before,
        "# Pods that failed are started again where ATOM says so.",
        "if ((JOB_COMPLETION_INDEX == 0 && RESTARTS > 0)); then",
        f"  {python} -P -m atom.launch.verdict {run}",
        "  case $? in 0 | 75 | 76) ;; *) exit 2 ;; esac",
        "fi",
        "((attempt = RESTARTS + 1))",
        f"exec {shlex.join([config.python, *job.command[1:]])} {run} \\",
        f'  --nodes {context.resources.nodes} --node "$JOB_COMPLETION_INDEX" \\',
        f'  --endpoint {name}-node-0-0.{name}:{config.port} --attempt "$attempt"',
    ]
    return "\n".join([*lines, ""])


def _literal(text: str) -> str:
    """Return ``text`` escaped against Kubernetes' expansion of ``$(NAME)``."""
    return re.sub(r"\$+\(|\${2,}", lambda match: match[0].replace("$", "$$"), text)
