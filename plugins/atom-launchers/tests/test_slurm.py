"""The batch script: what it asks for, and that a shell reads it as it was meant."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob
from atom.recipe.sections import Launcher
from atom_launchers.config import Slurm
from atom_launchers.slurm import SCRIPT, plan, reason

NODE = ("/opt/python", "-P", "-m", "atom.launch.node")


def script(*folders: str, config: Slurm | None = None, **resources: Any) -> str:
    jobs = tuple(
        LaunchJob(folder=Path(folder), ranks=16, device="cuda", command=NODE)
        for folder in folders or ("/runs/one",)
    )
    context = LaunchContext(
        jobs=jobs,
        place=jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent,
        resources=Launcher(**{"nodes": 2, "gpus_per_node": 8, **resources}),
        max_restarts=3,
        python=NODE[0],
    )
    submission = plan(config or Slurm(), context)
    assert submission.commands == (("sbatch", SCRIPT),)
    text = submission.files[SCRIPT]
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    return text


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def test_resources_become_options() -> None:
    config = Slurm(qos="high", spares=1, arguments=["--comment=mine"], signal_seconds=300)
    text = script(time="1-00:00:00", queue="gpu", account="lab", cpus_per_node=96, config=config)
    assert {
        "--nodes=3",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=1-00:00:00",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--signal=B:USR1@300",
        "--requeue",
        "--no-kill",
        "--exclusive",
        "--dependency=singleton",
        "--comment=mine",
        "--output=/runs/one/logs/slurm-%j.out",
    } <= set(options(text))
    assert "\nnodes=2\n" in text


def test_a_sweep_is_an_array() -> None:
    text = script("/runs/0", "/runs/1", "/runs/2", config=Slurm(parallel_jobs=2))
    assert {"--array=0-2%2", "--output=/runs/slurm-%A_%a.out"} <= set(options(text))
    assert "singleton" not in text, "jobs of an array have one name, and would wait for each other"


def test_containers() -> None:
    image = {"image": "ghcr.io/lab/atom:1", "mounts": ["/data:/data"]}
    text = script(**image)
    assert "--container-image=ghcr.io/lab/atom:1" in text
    assert "--container-mounts=/data:/data,/runs/one:/runs/one" in text
    text = script(**image, config=Slurm(container="apptainer"))
    assert "--container-image" not in text
    command = "apptainer exec --nv --bind /data:/data --bind /runs/one:/runs/one"
    assert f'exec {command} ghcr.io/lab/atom:1 "$@"' in text


def test_odd_names_stay_words(tmp_path: Path) -> None:
    """A folder and a variable are data to the shell, whatever is in them."""
    odd = 'it\'s $(touch pwned) "x"'
    text = script(f"/runs/{odd}", environment={"WORDS": odd})
    head = text[: text.index("# $task: one task")]
    shown = subprocess.run(
        ["bash", "-c", f'{head}\nprintf "%s|%s" "$folder" "$WORDS"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"/runs/{odd}|{odd}"
    assert not (tmp_path / "pwned").exists()


def test_pre_commands_with_quotes_reach_the_nodes(tmp_path: Path) -> None:
    text = script(before=["echo it's", "echo '$HOME'"])
    begin = text[text.index("begin=") : text.index("# The nodes of this job")]
    shown = subprocess.run(
        ["bash", "-c", f'{begin}\nSLURM_PROCID=1 HOME=h bash -c "$begin" task echo done'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout == "", "an unclosed quote of the user's is the user's own"
    text = script(before=['echo "it\'s"', "echo '$HOME'"])
    begin = text[text.index("begin=") : text.index("# The nodes of this job")]
    shown = subprocess.run(
        ["bash", "-c", f'{begin}\nSLURM_PROCID=1 HOME=h bash -c "$begin" task echo done'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "it's\n$HOME\ndone --node 1\n"


def test_runs_of_another_size_are_no_array() -> None:
    jobs = tuple(
        LaunchJob(folder=Path(f"/runs/{ranks}"), ranks=ranks, device="cpu", command=NODE)
        for ranks in (2, 4)
    )
    context = LaunchContext(
        jobs=jobs, place=Path("/runs"), resources=Launcher(), max_restarts=3, python="python"
    )
    with pytest.raises(UserError, match="equal numbers of ranks"):
        plan(Slurm(), context)


def test_a_refusal_is_slurms_own() -> None:
    said = (
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert reason(said) == (
        "Slurm refuses the job: Invalid partition name specified: invalid partition specified: "
        "nowhere"
    )
    assert reason("") == "Slurm refuses the job: no reason given"


@pytest.mark.parametrize(
    ("config", "resources", "says"),
    [
        ({}, {"mounts": ["/data:/data"]}, "launcher.mounts.*apply only to a container"),
        (
            {"min_link_gb_per_second": 9, "check_nodes": False},
            {},
            "has no effect without the check of links",
        ),
        (
            {"min_link_gb_per_second": 9},
            {"gpus_per_node": None},
            "has no effect without the check of links",
        ),
    ],
)
def test_what_nothing_would_come_of_is_refused(
    config: dict[str, Any], resources: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        script(config=Slurm(**config), **resources)
