"""A configuration from a stranger runs nothing where a run is submitted, and sends nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GIB = 2**30


class Victim:
    """Someone who tries a stranger's folder, and has a file of their own."""

    def __init__(self, command: Callable, tmp_path: Path) -> None:
        self.folder, self.mark = tmp_path / "stranger", tmp_path / "mark"
        self.home, self.work = tmp_path / "home", tmp_path / "work"
        self.home.mkdir()
        self.work.mkdir()
        # Clients that leave a trace when they are called.
        bin = tmp_path / "bin"
        bin.mkdir()
        for name in ("sbatch", "srun", "kubectl", "sky"):
            (bin / name).write_text(f"#!/bin/sh\ntouch {self.mark}\n")
            (bin / name).chmod(0o755)
        self._environment = {
            "XDG_CONFIG_HOME": str(self.home),
            "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        }
        self._command = command

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{mark}", str(self.mark)))
        return path

    def said(self, *arguments: str, timeout: float = 60) -> str:
        """Return the sentence of a refusal that called nothing and left nothing."""
        result = self._command(
            "train", "tokenizer=bytes", *arguments, cwd=self.work, timeout=timeout,
            **self._environment,
        )  # fmt: skip
        said = result.stderr.strip()
        assert result.returncode == 2, said
        assert said.startswith("atom: "), said
        assert len(said.splitlines()) == 1, said
        assert not self.mark.exists(), "something was executed"
        assert not list(self.work.iterdir()), "something was left behind"
        return said


@pytest.fixture
def victim(watched: Callable, tmp_path: Path) -> Victim:
    return Victim(watched, tmp_path)


@dataclass(frozen=True)
class Steering:
    """An experiment file that steers a client: with a launcher that the user has chosen."""

    text: str
    key: str
    launcher: str | None = "slurm"
    files: dict[str, str] = field(default_factory=dict)


TOUCH = "[touch {mark}]"

STEERING = {
    "commands before ranks": Steering(f"launcher: {{before: {TOUCH}}}", "launcher.before"),
    "with a launcher of its own": Steering(
        f"launcher: {{name: slurm, before: {TOUCH}}}", "launcher.name", None
    ),
    "options of sbatch": Steering("launcher: {arguments: [--wrap=x]}", "launcher.arguments"),
    "options of srun": Steering("launcher: {srun: [--task-prolog=x]}", "launcher.srun"),
    "variables": Steering("launcher: {environment: {BASH_ENV: x}}", "launcher.environment"),
    "an image": Steering("launcher: {image: evil.org/x}", "launcher.image"),
    "folders of the machine's": Steering("launcher: {mounts: ['/:/x']}", "launcher.mounts"),
    "options of kubectl": Steering(
        "launcher: {arguments: [--kubeconfig=x]}", "launcher.arguments", "kubernetes"
    ),
    "an interpreter": Steering("launcher: {python: ./x}", "launcher.python", "kubernetes"),
    "fields of a pod": Steering("launcher: {pod: {hostPID: true}}", "launcher.pod", "kubernetes"),
    "fields of a container": Steering(
        "launcher: {container: {securityContext: {privileged: true}}}",
        "launcher.container",
        "kubernetes",
    ),
    "a machine's setup": Steering(f"launcher: {{setup: {TOUCH}}}", "launcher.setup", "skypilot"),
    "a cloud": Steering("launcher: {infra: evil}", "launcher.infra", "skypilot"),
    "a bucket": Steering("launcher: {bucket: evil}", "launcher.bucket", "skypilot"),
    "resources": Steering(
        "launcher: {resources: {image_id: x}}", "launcher.resources", "skypilot"
    ),
    "where ranks meet": Steering("launcher: {host: evil.org}", "launcher.host", "torchrun"),
    "a launcher by a defaults list": Steering(
        "defaults: [override /launcher: slurm]", "launcher=slurm", None
    ),
    "by an interpolation": Steering(
        f"debug: {{x: {TOUCH}}}\nlauncher: {{before: '${{debug.x}}'}}", "launcher.before"
    ),
    "a section by an interpolation": Steering(
        f"debug: {{x: {{before: {TOUCH}}}}}\nlauncher: ${{debug.x}}", "launcher=${debug.x}"
    ),
    "by another file's place": Steering(
        "defaults: [/evil@launcher: x]",
        "launcher.before",
        files={"evil/x.yaml": f"before: {TOUCH}"},
    ),
    "by a header": Steering(
        f"# @package launcher\nbefore: {TOUCH}", "launcher.before"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STEERING.values(), ids=STEERING.keys())
def test_what_steers_a_client_is_the_users(case: Steering, victim: Victim) -> None:
    header = "" if case.text.startswith("# @package") else "# @package _global_\n"
    file = victim.write("experiment/x.yaml", header + case.text)
    for name, text in case.files.items():
        file = victim.write(name, text)
    launcher = [f"launcher={case.launcher}"] if case.launcher else []
    said = victim.said("--config-dir", str(victim.folder), "+experiment=x", *launcher)
    assert case.key in said
    assert str(file) in said
    assert "your own file" in said


def test_what_the_command_line_says_does_not_excuse_a_file(victim: Victim) -> None:
    """Hydra merges sections: what a file adds would stay."""
    text = "# @package _global_\nlauncher: {environment: {BASH_ENV: x}}\n"
    victim.write("experiment/x.yaml", text)
    folder = ("--config-dir", str(victim.folder), "+experiment=x", "launcher=slurm")
    assert "launcher.environment" in victim.said(*folder, "launcher.environment={A: b}")


def test_a_primary_configuration(victim: Victim) -> None:
    chosen = "architecture: llama3_tiny, tokenizer: bytes, dataset: stdlib, parallelism: single"
    chosen += ", optimizer: adamw"
    defaults = f"defaults: [{chosen}, _self_]\n"
    victim.write("train.yaml", f"{defaults}launcher: {{name: slurm, before: {TOUCH}}}\n")
    # Without ATOM's own, Hydra would make a folder for its logs.
    hydra = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none")
    place = ("--config-path", str(victim.folder), *hydra)
    said = victim.said(*place)
    assert "launcher.name=slurm" in said
    victim.write("mine.yaml", f"defaults: [train]\nlauncher: {{before: {TOUCH}}}\n")
    victim.write("train.yaml", defaults)
    said = victim.said(*place, "--config-name", "mine")
    assert "launcher.before" in said


def test_what_describes_may_come_from_anyone(victim: Victim) -> None:
    """Sizes and names of queues are data, and a user's own file says all.

    The mistake of the command line is what is left to be told."""
    victim.write(
        "experiment/x.yaml",
        "# @package _global_\n"
        "launcher: {nodes: 2, gpus_per_node: 8, time: '60', queue: gpu, account: a, before: []}\n",
    )
    mistake = "training.steps=-1"
    folder = ("--config-dir", str(victim.folder), "+experiment=x")
    assert mistake in victim.said(*folder, "launcher=slurm", mistake)
    own = victim.home / "atom/conf/launcher/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [slurm]\nbefore: [module load cuda]\nqos: high\n")
    assert mistake in victim.said(*folder, "launcher=mine", mistake)
    own.write_text("defaults: [slurm]\nbefore: [module load cuda]\nhydra: {}\n")
    assert "must not set hydra.*" in victim.said("launcher=mine", mistake)


HYDRAS = {
    "a launcher": "override /hydra/launcher: joblib",
    "a sweeper": "override /hydra/sweeper: optuna",
    "logging": "override /hydra/job_logging: none",
    "optional": "optional override hydra/launcher: joblib",
    "an option": "/hydra/launcher: basic",
    "a file": "/hydra/launcher/basic",
    "at another place": "/hydra/launcher@debug: basic",
}


@pytest.mark.parametrize("entry", HYDRAS.values(), ids=HYDRAS.keys())
def test_hydras_groups(entry: str, victim: Victim) -> None:
    file = victim.write("experiment/x.yaml", f"# @package _global_\ndefaults: [{entry}]\n")
    said = victim.said("--config-dir", str(victim.folder), "+experiment=x")
    assert f"hydra ({file})" in said


TEXTS = {
    "launcher.queue='gpu --output=x'": "one word",
    "launcher.account='a --wrap=x'": "one word",
    'launcher.queue="gpu\n#SBATCH --wrap=x"': "one word",
    'launcher.before=["x\ny"]': "one line",
    'launcher.mounts=["/a:/b\x07"]': "one line",
    'launcher.environment={A: "x\ny"}': "one line",
    "launcher.environment={A-B: x}": "letters, digits and _",
    "launcher.qos='a b'": "one word",
    'launcher.arguments=["--x\x1b[2J"]': "one line",
    'run.dir="x\ny"': "line breaks",
}


@pytest.mark.parametrize("override", TEXTS, ids=lambda text: text.partition("=")[0])
def test_text_of_a_script_is_one_line(override: str, victim: Victim) -> None:
    said = victim.said("launcher=slurm", override)
    assert override.partition("=")[0] in said
    assert TEXTS[override] in said


def sparse(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(8 * GIB)


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


PLACES = {  # and what is said of a pipe there
    "experiment": "experiment=x",
    "plugins.yaml": "is not a regular file",
    "run.yaml": "holds a pipe or a device (run.yaml)",
    "own file": "launcher=x",
    "lock": "is no regular file",
}


@pytest.mark.parametrize("make", [sparse, pipe], ids=["8 GiB", "pipe"])
@pytest.mark.parametrize("place", PLACES)
def test_files_are_measured_before_they_are_read(
    make: Callable[[Path], None], place: str, victim: Victim, tmp_path: Path
) -> None:
    path, arguments = victim.folder / "experiment/x.yaml", ("+experiment=x",)
    if place == "plugins.yaml":
        path, arguments = victim.home / "atom/plugins.yaml", ()
    elif place == "own file":
        path, arguments = victim.home / "atom/conf/launcher/x.yaml", ("launcher=x",)
    elif place == "lock":
        path, arguments = tmp_path / "x.lock", (f"plugins.locked={tmp_path}/x.lock",)
    elif place == "run.yaml":
        path, arguments = tmp_path / "run/run.yaml", (f"run.dir={tmp_path}/run", "device=cpu")
        (tmp_path / "run/checkpoint/step-1").mkdir(parents=True)
        (tmp_path / "run/checkpoint/step-1/.metadata").touch()
    make(path)
    victim.folder.mkdir(exist_ok=True)
    said = victim.said("--config-dir", str(victim.folder), *arguments, timeout=20)
    if make is sparse:
        assert str(path) in said
        assert " KiB" in said or "more than 64 MiB" in said
    else:
        assert PLACES[place] in said
