"""A secret that a run is given reaches its job, and nothing that others may read."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.errors import UserError
from atom.plugin import LaunchContext, LaunchJob
from atom.recipe.sections import Launcher
from atom.redaction import REDACTED, concealed, exposed, found, is_secret, redacted
from atom_launchers import kubernetes, skypilot, slurm, torchrun
from atom_launchers.config import Kubernetes, SkyPilot, Slurm, Torchrun

SECRET = "swordfish-1234"


@pytest.mark.parametrize(
    ("names", "secret"),
    [
        ("WANDB_API_KEY HF_TOKEN AWS_SECRET_ACCESS_KEY PASSWORD --auth-token hf_tokens", True),
        ("GOOGLE_APPLICATION_CREDENTIALS OPENAI_APIKEY SESSION_COOKIE DB_PASSWD", True),
        ("TOKENIZERS_PARALLELISM MONKEY KEYBOARD PATH NCCL_IB_HCA AUTHOR", False),
    ],
)
def test_names_of_secrets(names: str, secret: bool) -> None:
    for name in names.split():
        assert is_secret(name) == secret, name


PLACES: dict[str, Any] = {
    "environment": {"WANDB_API_KEY": SECRET},
    "before": [f"export HF_TOKEN='{SECRET}' && true"],
    "mounts": [f"https://user:{SECRET}@example.org/x:/y"],
    "arguments": [f"--comment=x --api-key={SECRET}"],
    "container": {"env": [{"name": "HF_TOKEN", "value": SECRET}]},
    "pod": {"deep": {"password": SECRET}},
}


@pytest.mark.parametrize("key", PLACES)
def test_whatever_is_written_of_a_run_has_none(key: str) -> None:
    """Everything that ATOM writes and compares goes by the dump of the section."""
    section = Launcher.model_validate({"name": "x", key: PLACES[key]})
    text = yaml.safe_dump(section.model_dump(mode="json"))
    assert SECRET not in text
    assert REDACTED in text
    [(where, value)] = found(dict(section), "launcher")
    assert where.startswith(f"launcher.{key}")
    assert SECRET in value
    assert SECRET in str(dict(section)), "and the launcher gets it"
    other = redacted({key: {"LEVEL": "1", "n": [1, None, "a=b"]}})
    assert other == {key: {"LEVEL": "1", "n": [1, None, "a=b"]}}


def planned(plan: Callable, config: Any, place: Path, **resources: Any) -> Any:
    job = LaunchJob(folder=place, ranks=1, device="cpu", command=("python", "-P", "-m", "x"))
    shared = Launcher(name="x", image="x", mounts=[f"claim:{place.parent}"], **resources)
    context = LaunchContext(
        jobs=(job,), place=place, resources=shared, max_restarts=3, python="python"
    )
    return plan(config, context)


def test_variables_by_name(tmp_path: Path) -> None:
    """The value is in no file, no command and no advice; a job without it says so."""
    names = {"pass_environment": ["WANDB_API_KEY"]}
    job = planned(slurm.plan, Slurm(), tmp_path / "run", **names)
    line = next(x for x in job.files["submit.sh"].splitlines() if "WANDB_API_KEY" in x)
    command = ["bash", "-c", f"{line}\nenv | grep WANDB"]
    given = subprocess.run(
        command, env=os.environ | {"WANDB_API_KEY": SECRET}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert given.stdout == f"WANDB_API_KEY={SECRET}\n"
    without = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "launcher.pass_environment names it" in without.stderr

    sky = planned(skypilot.plan, SkyPilot(bucket="abc"), Path("/runs/x"), **names)
    [command] = sky.commands
    assert command[command.index("--secret") + 1] == "WANDB_API_KEY"

    with pytest.raises(UserError, match="secretKeyRef") as refused:
        planned(kubernetes.plan, Kubernetes(), tmp_path / "run", **names)
    assert refused.value.key == "launcher.pass_environment"

    shared = Launcher(name="x", **names)
    jobs = (LaunchJob(folder=tmp_path, ranks=1, device="cpu", command=("x",)),)
    context = LaunchContext(
        jobs=jobs, place=tmp_path, resources=shared, max_restarts=3, python="python"
    )
    assert line in torchrun.plan(Torchrun(), context).advice
    typed = Launcher(name="x", environment={"WANDB_API_KEY": SECRET})
    context = LaunchContext(
        jobs=jobs, place=tmp_path, resources=typed, max_restarts=3, python="python"
    )
    with pytest.raises(UserError, match="pass_environment=\\[WANDB_API_KEY\\]"):
        torchrun.plan(Torchrun(), context)


@pytest.mark.slow
def test_a_submitted_run(atom: Callable, tmp_path: Path, small: tuple[str, ...]) -> None:
    """Its folder holds the secret in the script alone, which only its owner can read."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin/sbatch"
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 1\n")
    sbatch.chmod(0o755)
    extra = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HF_TOKEN": "passed-on"}
    place = tmp_path / "run"
    arguments = (
        "train", *small, "launcher=slurm", f"run.dir={place}", "launcher.environment.LEVEL=3",
        "launcher.pass_environment=[HF_TOKEN]",
    )  # fmt: skip
    for secret in (SECRET, "another-secret"):  # the second is another start of the same run
        typed = f"launcher.environment.WANDB_API_KEY={secret}"
        result = atom(*arguments, typed, cwd=tmp_path, **extra)
        assert result.returncode == 0, result.stderr
        said = result.stdout + result.stderr
        assert secret not in said
        assert "launcher.environment.WANDB_API_KEY: redacted in run.yaml" in said
        holding = [
            str(path.relative_to(place))
            for path in place.rglob("*")
            if path.is_file() and {SECRET, "another-secret", "passed-on"} & set(words(path))
        ]
        assert holding == ["submit.sh"]
        assert stat.S_IMODE((place / "submit.sh").stat().st_mode) == 0o600
    section = yaml.safe_load((place / "run.yaml").read_text())["launcher"]
    assert section["environment"] == {"WANDB_API_KEY": REDACTED, "LEVEL": "3"}
    del extra["HF_TOKEN"]
    result = atom(*arguments, cwd=tmp_path, **extra)
    assert result.returncode == 2
    assert "launcher.pass_environment=HF_TOKEN" in result.stderr
    assert "is not set here" in result.stderr


HUB, AWS = "hf_" + "aB3" * 11 + "x", "AKIA" + "ABCD1234" * 2
EXPOSED = {
    "a password": ("dataset.path=https://user:{}@example.org/x", SECRET, "without it"),
    "a token for a user": ("dataset.path=https://{}@example.org/x", SECRET * 2, "without it"),
    "a query": ("dataset.path=https://example.org/x?a=1&token={}", SECRET, "without it"),
    "a signature": ("dataset.path=s3://b/x?X-Amz-Signature={}", SECRET, "without it"),
    "the Hub": ("dataset.path={}", HUB, "HF_TOKEN in the environment"),
    "one of a list": ("dataset.path=[a,b/{}]", HUB, "HF_TOKEN in the environment"),
    "a checkpoint": ("checkpoint.initial_load_path=hf://{}@x/y", HUB, "HF_TOKEN"),
    "AWS": ("run.name={}", AWS, "AWS_SECRET_ACCESS_KEY in the environment"),
    "a name": ("+dataset.hub_token={}", SECRET, "an environment variable"),
    "a number of a token": ("training.steps={}", HUB, ""),
    "a key of a token": ("training.{}=1", HUB, ""),
}


@pytest.mark.parametrize("case", EXPOSED)
def test_a_secret_in_another_section_is_refused(
    case: str, forked: Callable, tmp_path: Path
) -> None:
    """It would be written to run.yaml, where ranks and resumed runs read it."""
    override, secret, valid = EXPOSED[case]
    override = override.format(secret)
    typed = ["dataset=local"] if override.startswith("dataset.path") else []
    result = forked(
        "train", "tokenizer=bytes", "device=cpu", *typed, override, f"run.dir={tmp_path / 'run'}"
    )
    assert result.returncode == 2, result.stderr
    [said] = result.stderr.splitlines()
    assert secret not in result.stdout + result.stderr
    assert REDACTED in said
    assert valid in said
    assert not list(tmp_path.iterdir())


def test_what_is_no_secret() -> None:
    for text in (
        "https://example.org/a?page=2&monkey=1", "hf://datasets/a/b@main/x.json", "hf_cache",
        "s3://bucket/key/x", "git@example.org:a/b", "runs/sk-small", "http://127.0.0.1:80/a@b",
    ):  # fmt: skip
        assert concealed(text) == text
    assert not list(exposed({"tokenizer": {"pad_token": "<|end of text|>", "key": "text"}}, ""))


@pytest.mark.parametrize("kind", ["job", "all", "hydra"])
@pytest.mark.parametrize("also", [[], ["--resolve"], ["--package", "launcher.environment"]])
def test_what_cfg_shows(kind: str, also: list[str], forked: Callable) -> None:
    if kind == "hydra" and "--package" in also:
        also = []
    result = forked(
        "train", "launcher=slurm", f"launcher.environment.WANDB_API_KEY={SECRET}",
        "dataset=local", f"dataset.path=https://user:{SECRET}@example.org/x", "--cfg", kind, *also,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert SECRET not in result.stdout + result.stderr
    assert REDACTED in result.stdout


def words(path: Path) -> list[str]:
    return path.read_bytes().decode(errors="replace").replace("=", " ").replace('"', " ").split()
