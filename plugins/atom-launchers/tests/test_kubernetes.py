"""The JobSet: what it asks for, judged by the schemas of JobSet and of Kubernetes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob
from atom.recipe.sections import Launcher
from atom_launchers.config import Kubernetes
from atom_launchers.kubernetes import MANIFEST, _literal, plan, reason

NODE = ("/opt/python", "-P", "-m", "atom.launch.node")
GPUS = {"nodes": 2, "gpus_per_node": 8, "gpu": "h100", "time": "1-00:00:00", "queue": "research"}
ALL = Kubernetes(
    namespace="lab",
    python="/opt/venv/bin/python",
    port=4711,
    memory="1800Gi",
    shared_memory="64Gi",
    extended_resources={"rdma/ib": 8},
    restarts=7,
    grace_seconds=300,
    pod={
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "reserved", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [{"name": "more", "emptyDir": {}}],
    },
    container={
        "envFrom": [{"secretRef": {"name": "tokens"}}],
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "volumeMounts": [{"name": "more", "mountPath": "/more"}],
    },
    arguments=["--context=lab"],
)
ALL_RESOURCES = {
    **GPUS,
    "cpus_per_node": 96,
    "mounts": ["shared:/runs", "/lustre:/data"],
    "environment": {"LEVEL": "1e3", "WORDS": 'it\'s $(date) "x": y'},
    "before": ["module load cuda", "echo $$ $(date)"],
}
CONFIGURATIONS = {
    "a node of CPUs": ({}, Kubernetes()),
    "two nodes of eight GPUs": (GPUS, Kubernetes()),
    "all options": (ALL_RESOURCES, ALL),
}


def planned(*folders: str, config: Kubernetes | None = None, **resources: Any) -> tuple[str, list]:
    """Return the file, and the JobSets in it."""
    gpus = resources.get("gpus_per_node")
    jobs = tuple(
        LaunchJob(
            folder=Path(folder),
            ranks=resources.get("nodes", 1) * (gpus or 2),
            device="cuda" if gpus else "cpu",
            command=NODE,
        )
        for folder in folders or ("/runs/First run",)
    )
    defaults = {"image": "ghcr.io/lab/atom:1", "mounts": ["shared:/runs"]}
    context = LaunchContext(
        jobs=jobs,
        place=jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent,
        resources=Launcher(**{**defaults, **resources}),
        max_restarts=3,
        python=NODE[0],
    )
    config = config or Kubernetes()
    submission = plan(config, context)
    create = ("kubectl", "create", "-f", MANIFEST)
    assert submission.commands == ((*create, *config.arguments),)
    text = submission.files[MANIFEST]
    return text, list(yaml.safe_load_all(text))


def pod(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


# ---------------------------------------------------------------------------- other's judgement


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_schema_of_jobset_knows_every_field(name: str) -> None:
    """The models that Kubeflow generates from JobSet's OpenAPI: what they do not know gets lost."""
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api"
    )
    resources, config = CONFIGURATIONS[name]
    _, [jobset] = planned(config=config, **resources)
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completion"] = 2
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_job_in_it_is_one_of_kubernetes(name: str, version: str) -> None:
    """The strict JSON schemas of these versions; JobSet makes this Job of its template."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    resources, config = CONFIGURATIONS[name]
    _, [jobset] = planned(config=config, **resources)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"]}
    job |= jobset["spec"]["replicatedJobs"][0]["template"]
    validate.validate(job, version, strict=True)
    pod(jobset)["containers"][0]["evn"] = []
    with pytest.raises(validate.ValidationError, match="evn"):
        validate.validate(job, version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_kubectl_reads_what_was_written(tmp_path: Path) -> None:
    """Its parser is another: without quotes it takes ``1e3`` for a number."""
    text, jobsets = planned(config=ALL, **ALL_RESOURCES)
    (tmp_path / MANIFEST).write_text(text)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{MANIFEST}]\n")
    read = ["kubectl", "kustomize", str(tmp_path)]
    shown = subprocess.run(read, capture_output=True, text=True, check=True)
    assert list(yaml.safe_load_all(shown.stdout)) == jobsets


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
def test_a_refusal_is_kubectls_own(tmp_path: Path) -> None:
    text, _ = planned()
    (tmp_path / MANIFEST).write_text(text)
    (tmp_path / "config").write_text("")
    create = ["kubectl", "--kubeconfig", str(tmp_path / "config"), "create", "-f", MANIFEST]
    refused = subprocess.run(
        [*create, "--server=http://127.0.0.1:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode
    words = reason(refused.stderr)
    assert words.startswith("kubectl refuses the run: ")
    assert "connection refused" in words


def test_a_run_that_is_there_already_is_told() -> None:
    said = 'Error from server (AlreadyExists): error when creating "jobset.yaml": '
    said += 'jobsets.jobset.x-k8s.io "atom-first-0a1b2c3d" already exists\n'
    assert reason(said) == (
        'kubectl refuses the run: jobsets.jobset.x-k8s.io "atom-first-0a1b2c3d" already exists; '
        "`kubectl delete jobset NAME` makes room for it, once that one has ended"
    )
    assert reason("") == "kubectl refuses the run: no reason given"


# ---------------------------------------------------------------------------- what it asks for


def test_resources_become_fields() -> None:
    _, [jobset] = planned(config=ALL, **ALL_RESOURCES)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = pod(jobset)["containers"]
    assert jobset["metadata"]["namespace"] == "lab"
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert job["activeDeadlineSeconds"] == 86400
    assert container["resources"] == {
        "limits": {"rdma/ib": 8, "nvidia.com/gpu": 8, "memory": "1800Gi"},
        "requests": {"cpu": 96},
    }
    assert pod(jobset)["terminationGracePeriodSeconds"] == 300
    assert pod(jobset)["volumes"] == [
        {"name": "volume-0", "persistentVolumeClaim": {"claimName": "shared"}},
        {"name": "volume-1", "hostPath": {"path": "/lustre", "type": "Directory"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        {"name": "more", "emptyDir": {}},
    ]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [
        *("/runs", "/data", "/dev/shm", "/more")
    ]
    assert [taint["key"] for taint in pod(jobset)["tolerations"]] == ["nvidia.com/gpu", "reserved"]
    assert {"name": "LEVEL", "value": "1e3"} in container["env"]


def test_a_mistake_ends_the_run_and_a_time_limit_does_not() -> None:
    _, [jobset] = planned(**GPUS)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 100,
        "rules": [
            {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
            {
                "name": "time_limit",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["DeadlineExceeded"],
            },
        ],
    }


def test_a_sweep_is_a_jobset_a_run() -> None:
    _, jobsets = planned("/runs/0", "/runs/1", "/runs/2")
    assert len({jobset["metadata"]["name"] for jobset in jobsets}) == 3
    folders = [jobset["metadata"]["annotations"]["atom-train/run"] for jobset in jobsets]
    assert folders == ["/runs/0", "/runs/1", "/runs/2"]


@pytest.mark.parametrize(
    ("resources", "config", "words"),
    [
        ({"image": None}, {}, "launcher.image: is needed"),
        ({"account": "lab"}, {}, "launcher.account=lab: Kubernetes does not support it"),
        ({"queue": "a/b"}, {}, "launcher.queue=a/b: is not a valid name of a queue"),
        ({"mounts": []}, {}, "run.dir=/runs/First run: is not on a volume of the pods"),
        ({"mounts": ["shared:/runs/First"]}, {}, "run.dir=/runs/First run: is not on a volume"),
        ({"mounts": ["shared"]}, {}, "launcher.mounts=shared: is not a volume and its target"),
        ({"mounts": ["Shared:/runs"]}, {}, "launcher.mounts=Shared:/runs: is not a volume; valid"),
        ({}, {"pod": {"restartPolicy": "Always"}}, "launcher.pod.restartPolicy: is set by ATOM"),
    ],
)
def test_what_cannot_be_is_told(resources: dict, config: dict, words: str) -> None:
    with pytest.raises(UserError) as refused:
        planned(config=Kubernetes(**config), **resources)
    assert refused.value.sentence().startswith(words)


# ---------------------------------------------------------------------------- what a pod runs


def expanded(text: str) -> str:
    """Fill in a command as Kubernetes' API reference says: `$(NAME)`, and `$$` for `$`."""
    known = {"NAME": "filled in"}

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


@given(st.text(alphabet="$()NAMEx\n "))
@example("$(NAME)")
@example("$$(NAME)")
@example("$$$")
def test_kubernetes_fills_in_nothing(text: str) -> None:
    assert expanded(_literal(text)) == text


def test_the_command_of_a_pod(tmp_path: Path) -> None:
    """The shell that Kubernetes starts, with its variables: what it hands to Python."""
    odd = '/runs/it\'s $(touch pwned) $$ "x"'
    config = Kubernetes(python="echo")
    _, [jobset] = planned(odd, config=config, nodes=2, before=['echo "$$(NAME)"'])
    [bash, option, script] = pod(jobset)["containers"][0]["command"]
    name = jobset["metadata"]["name"]

    def shown(index: str, restarts: str) -> list[str]:
        variables = {"JOB_COMPLETION_INDEX": index, "RESTARTS": restarts, "PATH": "/usr/bin:/bin"}
        command = [bash, option, expanded(script)]
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )
        return done.stdout.splitlines()

    end = f"--endpoint {name}-node-0-0.{name}:29500"
    first, node = shown("1", "0")
    assert re.fullmatch(r"\d+\(NAME\)", first), "$$ is the shell's"
    assert node == f"-P -m atom.launch.node {odd} --nodes 2 --node 1 {end} --attempt 1"
    _, judged, node = shown("0", "3")
    assert judged == f"-P -m atom.launch.verdict {odd}"
    assert node == f"-P -m atom.launch.node {odd} --nodes 2 --node 0 {end} --attempt 4"
    assert not (tmp_path / "pwned").exists()
