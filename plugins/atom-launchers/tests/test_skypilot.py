"""The task: what it asks for, judged by SkyPilot's own parser, and what a machine runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob, Submission
from atom.recipe.sections import Launcher
from atom_launchers.config import SkyPilot
from atom_launchers.skypilot import plan, reason

NODE = ("/opt/python", "-P", "-m", "atom.launch.node")
GPUS = {"nodes": 2, "gpus_per_node": 8, "gpu": "h100"}
ALL = SkyPilot(
    infra="aws/us-east-1",
    accelerator="H200",
    use_spot=True,
    memory="1000+",
    python="/opt/venv/bin/python",
    port=4711,
    setup=["pip install -U lab-plugin"],
    restarts=7,
    resources={"disk_size": 512, "job_recovery": {"strategy": "FAILOVER"}, "network_tier": "best"},
    arguments=["--priority=700"],
)
ALL_RESOURCES = {
    **GPUS,
    "cpus_per_node": 96,
    "time": "1-00:00:00",
    "image": "ghcr.io/lab/atom:1",
    "mounts": ["shared:{runs}", "s3://lab-texts/openwebtext:/data"],
    "environment": {"LEVEL": "1e3", "WORDS": 'it\'s $(date) "x": y'},
    "before": ["ulimit -l unlimited"],
}
CONFIGURATIONS = {
    "a machine of CPUs, and a bucket": ({"mounts": []}, SkyPilot(bucket="lab-first", store="s3")),
    "two machines of eight GPUs": (GPUS, SkyPilot()),
    "all options": (ALL_RESOURCES, ALL),
}


def planned(
    *folders: Path, config: SkyPilot | None = None, **resources: Any
) -> tuple[Submission, list[dict]]:
    """Return the submission, and the tasks in its files."""
    runs = folders[0].parent
    gpus = resources.get("gpus_per_node")
    jobs = tuple(
        LaunchJob(
            folder=folder,
            ranks=resources.get("nodes", 1) * (gpus or 2),
            device="cuda" if gpus else "cpu",
            command=NODE,
        )
        for folder in folders
    )
    mounts = [mount.format(runs=runs) for mount in resources.pop("mounts", ["shared:{runs}"])]
    context = LaunchContext(
        jobs=jobs,
        place=jobs[0].folder if len(jobs) == 1 else runs,
        resources=Launcher(mounts=mounts, **resources),
        max_restarts=3,
        python=NODE[0],
    )
    submission = plan(config or SkyPilot(), context)
    return submission, [yaml.safe_load(text) for text in submission.files.values()]


# ---------------------------------------------------------------------------- SkyPilot's judgement

PARSER = os.environ.get("SKYPILOT_PYTHON") or (
    sys.executable if importlib.util.find_spec("sky") else None
)
"""An interpreter that has SkyPilot. It cannot be this one: it wants an older click than ATOM's
other packages. ``make test-skypilot`` makes it an environment of its own."""

_PARSE = """
import json, sys
import sky
results = []
for text in json.load(sys.stdin):
    import yaml
    try:
        task = sky.Task.from_yaml_config(yaml.safe_load(text))
        results.append([None, task.to_yaml_config()])
    except Exception as error:
        results.append([str(error), None])
json.dump(results, sys.stdout, default=str)
"""


@pytest.mark.slow
@pytest.mark.skipif(PARSER is None, reason="no SkyPilot in SKYPILOT_PYTHON: `make test-skypilot`")
def test_the_parser_of_skypilot_takes_the_tasks(tmp_path: Path) -> None:
    assert PARSER is not None
    run = tmp_path / "runs" / "First run"
    run.mkdir(parents=True)
    texts = []
    for resources, config in CONFIGURATIONS.values():
        submission, _ = planned(run, config=config, **resources)
        texts += submission.files.values()
    wrong = texts[0].replace("num_nodes", "nodes"), texts[0].replace("75", "7500")
    done = subprocess.run(
        [PARSER, "-c", _PARSE],
        input=json.dumps([*texts, *wrong]),
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout[done.stdout.index("[[") :])
    *good, field, code = read
    assert [problem for problem, _ in good] == [None, None, None]
    assert "nodes" in field[0]
    assert "7500" in code[0]
    cpus, gpus, everything = [task for _, task in good]
    assert (cpus["num_nodes"], gpus["num_nodes"]) == (1, 2)
    bucket = {"name": "lab-first", "store": "S3", "mode": "MOUNT_CACHED", "persistent": True}
    assert cpus["file_mounts"][str(run)] == bucket
    assert gpus["resources"]["accelerators"] == {"H100": 8}
    assert gpus["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 76]
    assert everything["resources"]["infra"] == "aws/us-east-1"
    assert everything["resources"]["use_spot"] is True
    assert everything["resources"]["job_recovery"]["strategy"] == "FAILOVER"
    assert everything["envs"] == ALL_RESOURCES["environment"]
    assert everything["volumes"] == {str(run.parent): "shared"}


# ---------------------------------------------------------------------------- what it asks for


def test_resources_become_fields(tmp_path: Path) -> None:
    run = tmp_path / "run"
    submission, [task] = planned(run, config=ALL, **ALL_RESOURCES)
    launch = ("sky", "jobs", "launch", "--yes", "--detach-run", "--priority=700")
    assert submission.commands == ((*launch, "skypilot.yaml"),)
    assert task["resources"] == {
        "infra": "aws/us-east-1",
        "accelerators": "H200:8",
        "cpus": "96+",
        "memory": "1000+",
        "use_spot": True,
        "image_id": "docker:ghcr.io/lab/atom:1",
        "job_recovery": {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [75, 76],
            "strategy": "FAILOVER",
        },
        "disk_size": 512,
        "network_tier": "best",
    }
    assert task["file_mounts"] == {
        "/data": "s3://lab-texts/openwebtext",
        f"~/.atom/{task['name']}": str(run),
    }
    assert task["setup"].splitlines() == [
        "pip install -U lab-plugin",
        "/opt/venv/bin/python -c 'import atom' || exit 2",
    ]
    assert "timeout --foreground --preserve-status -s USR1 86400 /opt/venv/bin" in task["run"]


def test_a_sweep_is_a_task_and_a_bucket_a_run(tmp_path: Path) -> None:
    runs = [tmp_path / str(number) for number in range(3)]
    submission, tasks = planned(*runs, config=SkyPilot(bucket="lab-sweep"), mounts=[])
    assert [command[-1] for command in submission.commands] == list(submission.files)
    buckets = [task["file_mounts"][str(run)]["name"] for run, task in zip(runs, tasks, strict=True)]
    assert buckets == ["lab-sweep-0", "lab-sweep-1", "lab-sweep-2"]


@pytest.mark.parametrize(
    ("resources", "config", "words"),
    [
        ({"queue": "gpu"}, {}, "launcher.queue=gpu: SkyPilot does not support it"),
        ({"account": "lab"}, {}, "launcher.account=lab: SkyPilot does not support it"),
        (
            {"gpus_per_node": 8},
            {},
            "launcher.gpu: is needed, because SkyPilot requests GPUs by name",
        ),
        ({"nodes": 2}, {"bucket": "lab"}, "launcher.bucket=lab: cannot hold the run of several"),
        ({"mounts": []}, {}, "run.dir={run}: would be lost with the machines"),
        ({"mounts": ["s3://lab:{runs}"]}, {}, "run.dir={run}: would be lost with the machines"),
        ({"mounts": ["shared"]}, {}, "launcher.mounts=shared: is not a volume and its target"),
        ({}, {"resources": {"cpus": 4, "use_spot": True}}, "launcher.resources.use_spot: is set"),
    ],
)
def test_what_cannot_be_is_told(resources: dict, config: dict, words: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError) as refused:
        planned(run, config=SkyPilot(**config), **resources)
    assert refused.value.sentence().startswith(words.format(run=run))


def test_variables_are_not_filled_into_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains \$"):
        planned(tmp_path / "$LEVEL", environment={"LEVEL": "1"})


def test_a_refusal_is_skypilots_own() -> None:
    assert reason("ValueError: no\n  cloud\n") == "SkyPilot refuses the job: ValueError: no cloud"
    assert reason("") == "SkyPilot refuses the job: no reason given"


# ---------------------------------------------------------------------------- what a machine runs


class Machine:
    """Runs the task's script as SkyPilot does, in bash with its variables.

    Python there is a shell script that says what it was asked to run, and ends as it is told.
    """

    def __init__(self, place: Path, **options: Any) -> None:
        self.run = place / "runs" / 'it\'s "one"; touch pwned'
        python = place / "python"
        python.write_text(
            '#!/bin/bash\necho "$3" "${@:5}"\n[[ $3 == *verdict ]] && exit $VERDICT\nexit $NODE\n'
        )
        python.chmod(0o755)
        _, [task] = planned(self.run, config=SkyPilot(python=str(python), **options), nodes=2)
        self.script = task["run"]
        self.composed = place / ".atom" / task["name"]
        self.composed.mkdir(parents=True)
        for name in ("run.yaml", "lock.json", "metrics.jsonl"):
            (self.composed / name).write_text("of this job")
        self.place = place

    def start(
        self, rank: int = 0, *, job: str = "sky-1", verdict: int = 76, node: int = 0
    ) -> tuple[int, list[str]]:
        """Return the exit code and the lines printed."""
        done = subprocess.run(
            ["bash", "-c", self.script],
            env={
                "HOME": str(self.place),
                "PATH": "/usr/bin:/bin",
                "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NUM_NODES": "2",
                "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
                "SKYPILOT_TASK_ID": job,
                "VERDICT": str(verdict),
                "NODE": str(node),
            },
            cwd=self.place,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, (done.stdout + done.stderr).splitlines()


def test_the_first_machine_puts_the_run_in_its_place(tmp_path: Path) -> None:
    """Settings of this job over older ones; what was trained stays."""
    machine = Machine(tmp_path)
    machine.run.mkdir(parents=True)
    (machine.run / "run.yaml").write_text("of an earlier job")
    (machine.run / "metrics.jsonl").write_text("of an earlier job")
    end = "--endpoint 10.0.0.1:29500 --attempt 1"
    node = f"atom.launch.node --nodes 2 --node 0 {end}"
    assert machine.start() == (0, [node])
    assert (machine.run / "run.yaml").read_text() == "of this job"
    assert (machine.run / "lock.json").read_text() == "of this job"
    assert (machine.run / "metrics.jsonl").read_text() == "of an earlier job"
    assert machine.start(1) == (0, [node.replace("--node 0", "--node 1")])
    assert not (tmp_path / "pwned").exists()


def test_a_job_that_is_started_again_asks_for_the_verdict(tmp_path: Path) -> None:
    machine = Machine(tmp_path, restarts=2)
    assert machine.start(node=1)[0] == 76, "another start may help"
    code, [judged, node] = machine.start(node=75)
    assert (code, judged) == (75, "atom.launch.verdict")
    assert node.endswith("--attempt 2")
    assert machine.start(verdict=1) == (2, ["atom.launch.verdict"]), "ATOM says no"
    assert machine.start(node=2)[0] == 2
    code, [words] = machine.start()
    assert (code, words) == (2, "atom: not restarted: 3 starts did not help")
    code, [node] = machine.start(job="sky-2")
    assert node.endswith("--attempt 1"), "another job begins anew"
