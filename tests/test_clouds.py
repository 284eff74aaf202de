"""Kubernetes and SkyPilot, without their machines: what is submitted, and what they would run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from atom.run_dir import evals, events

sys.path.append(str(Path(__file__).parents[1] / "plugins/atom-evaluators/tests"))

from made import evaluating

POD = (
    "launcher=kubernetes",
    "launcher.image=ghcr.io/lab/atom:1",
    f"launcher.python={sys.executable}",
)
TASK = ("launcher=skypilot", f"launcher.python={sys.executable}")


def accepting(folder: Path, name: str) -> str:
    """Return a PATH with a command of that name, which takes what it is given: there is no cloud
    here."""
    command = folder / "bin" / name
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexit 0\n")
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "command"), [(POD, "kubectl"), (TASK, "sky")], ids=["kubernetes", "skypilot"]
)
def test_without_its_command_a_launcher_writes_nothing(
    given: tuple[str, ...], command: str, atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    run, nothing = tmp_path / "run", tmp_path / "bin"
    given += (f"launcher.mounts=[shared:{tmp_path}]", f"run.dir={run}")
    result = atom("train", *small, *given, PATH=str(nothing))
    assert result.returncode == 2
    assert "atom: launcher" in result.stderr
    assert f"there is no command {command} on this machine" in result.stderr
    assert not run.exists()


@pytest.mark.slow
def test_a_parameter_that_could_be_idle_is_submitted(
    atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    """Where it was set is asked after the run is composed."""
    two = ("launcher=slurm", "launcher.nodes=2", "parallelism=fsdp", "launch.ranks=2")
    asked = (*two, "launcher.check_links=false", "launcher.dry_run=true", f"run.dir={tmp_path}/run")
    result = atom("train", *small, *asked)
    assert result.returncode == 0, result.stderr
    assert "$ sbatch submit.sh" in result.stdout


@pytest.mark.slow
def test_a_refusal_writes_nothing(atom: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    """The launcher's own, which it makes of the run as it has been checked."""
    run = tmp_path / "run"
    result = atom("train", *small, "launcher=kubernetes", f"run.dir={run}")
    assert (result.returncode, result.stderr) == (
        2,
        "atom: launcher.image (command line): is needed, because pods run images; valid: an image "
        "with ATOM and its plugins\n",
    )
    assert not run.exists()


@pytest.mark.slow
def test_a_pod_trains(
    port: int,
    atom: Callable,
    environment: dict[str, str],
    small: tuple[str, ...],
    rows: Callable,
    tmp_path: Path,
) -> None:
    """The command of the only pod, with the variables that Kubernetes and JobSet set."""
    run = tmp_path / "run"
    overrides = (*small, *POD, f"launcher.port={port}", f"launcher.mounts=[shared:{tmp_path}]")
    overrides += ("training.steps=2", *evaluating(tmp_path))
    result = atom("train", *overrides, f"run.dir={run}", PATH=accepting(tmp_path, "kubectl"))
    assert result.returncode == 0, result.stderr
    jobset = yaml.safe_load((run / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    *bash, script = job["template"]["spec"]["containers"][0]["command"]
    host = f"{jobset['metadata']['name']}-node-0-0.{jobset['metadata']['name']}"
    assert script.count(host) == 1
    done = subprocess.run(
        [*bash, script.replace(host, "127.0.0.1")],
        env=environment | {"JOB_COMPLETION_INDEX": "0", "RESTARTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(run)] == [1, 2]
    assert "evaluated step 2: colors_rc acc " in done.stdout
    assert {row.step for row in evals.read(run)} == {2}


@pytest.mark.slow
def test_a_machine_of_skypilot_trains_and_is_started_again(
    port: int,
    atom: Callable,
    environment: dict[str, str],
    small: tuple[str, ...],
    rows: Callable,
    tmp_path: Path,
) -> None:
    """The task's script: it takes the run from what was uploaded, and then goes on with it."""
    run = tmp_path / "volume" / "run"
    overrides = (*small, *TASK, f"launcher.port={port}", f"launcher.mounts=[shared:{run.parent}]")
    overrides += ("training.steps=2",)
    result = atom("train", *overrides, f"run.dir={run}", PATH=accepting(tmp_path, "sky"))
    assert result.returncode == 0, result.stderr
    task = yaml.safe_load((run / "skypilot.yaml").read_text())
    uploaded = tmp_path / ".atom" / task["name"]
    assert task["file_mounts"] == {f"~/.atom/{task['name']}": str(run)}
    shutil.copytree(run, uploaded)
    shutil.rmtree(run.parent)

    def start() -> None:
        done = subprocess.run(
            ["bash", "-c", task["run"]],
            env=environment
            | {
                "HOME": str(tmp_path),
                "SKYPILOT_NODE_RANK": "0",
                "SKYPILOT_NUM_NODES": "1",
                "SKYPILOT_NODE_IPS": "127.0.0.1",
                "SKYPILOT_TASK_ID": "sky-managed-1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    start()
    assert [row["step"] for row in rows(run)] == [1, 2]
    start()
    assert [row["step"] for row in rows(run)] == [1, 2], "all was done: its machines were lost late"
    starts = [event for event in events.read(run) if event["event"] == events.STARTED]
    assert [event["attempt"] for event in starts] == [1, 2]
