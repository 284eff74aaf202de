"""A configuration from a stranger executes nothing and tells nothing, through the real command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.errors import UserError
from atom.io import yaml_data
from atom.recipe.components import ONE
from atom.recipe.run import read

pytestmark = pytest.mark.slow

SECRET = "swordfish"

# A plugin that brings a resolver along, as any code may.
RESOLVING = """
import os, pathlib
from omegaconf import OmegaConf

def shell(command):
    pathlib.Path(os.environ["MARK"]).touch()
    return command

OmegaConf.register_new_resolver("shell", shell, replace=True)
"""


@dataclass(frozen=True)
class Hostile:
    """Files of a config folder, and what the sentence about ``experiment/x`` must hold."""

    text: str
    says: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    named: str = "x.yaml"


TOUCH = "{_target_: os.system, command: 'touch {mark}'}"

FILES = {
    # ------------------------------------------------------------ code
    "target": Hostile(f"dataset: {TOUCH}", ("dataset._target_", "cannot instantiate")),
    "target in a list": Hostile(
        f"dataset: {{parts: [{TOUCH}]}}", ("dataset.parts.0._target_", "cannot instantiate")
    ),
    "target of a component's own parameter": Hostile(
        f"architecture: {{rope: {{scaling: {TOUCH}}}}}", ("architecture.rope.scaling._target_",)
    ),
    "another reserved key": Hostile("debug: {_partial_: true}", ("debug._partial_",)),
    "python object": Hostile(
        "debug: !!python/object/apply:os.system ['touch {mark}']", ("the tag", "python/object")
    ),
    "python name": Hostile("debug: !!python/name:os.system", ("the tag", "python/name")),
    "python path": Hostile(
        "debug: {seed: !!python/object/apply:pathlib.Path [/]}", ("the tag", "pathlib")
    ),
    "local tag": Hostile("debug: !run {seed: 1}", ("the tag", "!run")),
    "binary": Hostile("debug: {seed: !!binary aGk=}", ("the tag", "binary")),
    "Hydra's callbacks": Hostile(
        f"hydra: {{callbacks: {{x: {TOUCH}}}}}", ("hydra", "can execute code")
    ),
    "Hydra's logging": Hostile(
        "hydra: {job_logging: {version: 1, formatters: {x: {(): os.system, "
        "command: touch {mark}}}}}",
        ("hydra", "can execute code"),
    ),
    "Hydra's section by a header": Hostile(
        f"# @package hydra.callbacks\nx: {TOUCH}", ("hydra", "can execute code")
    ),
    "Hydra's section by a defaults list": Hostile(
        "defaults:\n  - /evil@hydra.callbacks: x",
        ("hydra", "can execute code"),
        files={"evil/x.yaml": f"x: {TOUCH}"},
        named="evil/x.yaml",
    ),
    "Hydra's groups": Hostile(
        "defaults:\n  - override /hydra/launcher: evil",
        ("hydra", "can execute code"),
        files={"hydra/launcher/evil.yaml": "_target_: os.system\ncommand: touch {mark}"},
    ),
    "import by a search path": Hostile(
        "hydra: {searchpath: ['pkg://antigravity']}", ("hydra", "can execute code")
    ),
    # ------------------------------------------------------------ resolvers
    "environment": Hostile(
        "architecture: {name: '${oc.env:SECRET}'}",
        ("architecture.name", "may not read the environment", "SECRET"),
    ),
    "environment, in a text": Hostile(
        "dataset: {path: 'https://example.org/${oc.env:SECRET}'}", ("dataset.path", "SECRET")
    ),
    "environment, with a default": Hostile(
        "debug: {seed: '${oc.env:SECRET,1}'}", ("debug.seed", "SECRET")
    ),
    "environment, by a name put together": Hostile(
        "debug: {a: 'oc.env', b: '${${debug.a}:SECRET}'}", ("x.yaml", "debug.b")
    ),
    "evaluated text": Hostile(
        "debug: {a: '$', b: '{oc.env:SECRET}'}\n"
        "architecture: {name: '${oc.decode:${debug.a}${debug.b}}'}",
        ("architecture.name", "oc.decode is refused", "oc.select"),
    ),
    "created configuration": Hostile(
        'dataset: {x: "${oc.create:{_target_: os.system}}"}', ("dataset.x", "oc.create is refused")
    ),
    "resolver of a plugin": Hostile(
        "dataset: {x: '${shell:ls}'}", ("dataset.x", "shell is refused")
    ),
    "resolver that is not there": Hostile("dataset: {x: '${evil:ls}'}", ("dataset.x", "evil")),
    # ------------------------------------------------------------ paths and names
    "path in a defaults list": Hostile(
        "defaults:\n  - override /architecture: ../../secret",
        ("architecture=../../secret", "there is no such option"),
        named="",
    ),
    "path out of the folder": Hostile(
        "defaults:\n  - ../../secret", ("leads out of the config folders",), named=""
    ),
    "absolute path in a defaults list": Hostile(
        "defaults:\n  - /{tmp}/secret", ("secret",), named=""
    ),
    "path for a component": Hostile(
        "architecture: {name: ../../secret}", ("architecture.name=../../secret", "llama3")
    ),
    "absolute path for a tokenizer": Hostile(
        "tokenizer: {name: /{tmp}/secret}", ("tokenizer.name=/", "there is no tokenizer")
    ),
    "module for a component": Hostile(
        "architecture: {name: 'os:system'}", ("architecture.name=os:system", "there is no")
    ),
    "folder outside of the run's": Hostile(
        "checkpoint: {folder: ../../elsewhere}", ("checkpoint.folder=../../elsewhere", "run folder")
    ),
    "absolute folder": Hostile(
        "profiler: {save_traces_folder: /{tmp}/x}", ("profiler.save_traces_folder", "run folder")
    ),
    # ------------------------------------------------------------ size
    "aliases that multiply": Hostile(
        "debug:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        ("more than", "aliases expanded"),
    ),
    "alias of itself": Hostile("debug: &a [*a]", ("*a",)),
    "merge keys that multiply": Hostile(
        "debug:\n  a0: &a0 {x: [1, 2, 3]}\n"
        + "".join(
            f"  a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, <<: *a{n - 1}}}\n" for n in range(1, 30)
        ),
        ("more than", "aliases expanded"),
    ),
    "texts that multiply": Hostile(
        "debug:\n  k0: xxxxxxxxxxxxxxxx\n"
        + "".join(f"  k{n}: ${{debug.k{n - 1}}}${{debug.k{n - 1}}}\n" for n in range(1, 40)),
        ("interpolations", "at most"),
    ),
    "nodes that multiply": Hostile(
        "debug:\n  k0: x\n"
        + "".join(
            f"  k{n}: {{a: '${{debug.k{n - 1}}}', b: '${{debug.k{n - 1}}}'}}\n"
            for n in range(1, 40)
        ),
        ("interpolations", "at most"),
    ),
    "interpolations in a circle": Hostile(
        "debug: {a: '${debug.b}', b: '${debug.a}'}", ("debug.a", "refers to itself")
    ),
    "defaults in a circle": Hostile("defaults:\n  - /experiment/x", ("cycle",), named=""),
    "brackets in brackets": Hostile(f"debug: {'[' * 5000}{']' * 5000}", ("nesting",)),
    "number of many digits": Hostile(f"training: {{steps: {'1' * 5000}}}", ("too many digits",)),
    "number beyond 64 bits": Hostile(
        f"training: {{steps: {'1' * 50}}}", ("training.steps", "64 bits")
    ),
    "long text": Hostile(f"debug: {{seed: {'x' * 20000}}}", ("characters",)),
    "large file": Hostile("#" * 300_000, ("KiB",)),
    "key that is no text": Hostile("debug: {1: x}", ("debug.1", "text"), named=""),
    "no mapping": Hostile("- x", ("x",), named=""),
    "no YAML": Hostile("a: [", ("is not valid YAML",)),
}


class Victim:
    """Someone who tries a stranger's folder."""

    def __init__(self, command: Callable, tmp_path: Path, site: Path) -> None:
        self.folder, self.mark = tmp_path / "stranger", tmp_path / "mark"
        self.work = tmp_path / "work"
        self.work.mkdir()
        (tmp_path / "secret.yaml").write_text(f"name: {SECRET}\n")
        self._command, self._tmp, self._site = command, tmp_path, site

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{mark}", str(self.mark)).replace("/{tmp}", str(self._tmp)))

    def said(self, *arguments: str) -> str:
        """Return the one sentence of a refusal that did nothing and told nothing."""
        environment = {"SECRET": SECRET, "MARK": str(self.mark), "PYTHONPATH": str(self._site)}
        result = self._command("train", *arguments, cwd=self.work, **environment)
        said = result.stderr.strip()
        assert result.returncode == 2, said
        assert said.startswith("atom: "), said
        assert len(said.splitlines()) == 1, said
        assert not self.mark.exists(), "something was executed"
        assert SECRET not in result.stdout + said, "something was told"
        assert not list(self.work.iterdir()), "something was left behind"
        return said


@pytest.fixture
def victim(watched: Any, tmp_path: Path, install: Callable) -> Victim:
    site = install("resolving-plugin", {"__init__.py": RESOLVING})
    watched.installed.append(site)
    watched.private.add("secret.yaml")
    return Victim(watched, tmp_path, site)


@pytest.mark.parametrize("hostile", FILES.values(), ids=FILES.keys())
def test_a_file(hostile: Hostile, victim: Victim) -> None:
    header = "" if hostile.text.startswith("# @package") else "# @package _global_\n"
    victim.write("experiment/x.yaml", header + hostile.text)
    for name, text in hostile.files.items():
        victim.write(name, text)
    said = victim.said("--config-dir", str(victim.folder), "+experiment=x", *hostile.overrides)
    for words in (*hostile.says, hostile.named):
        assert words in said, said


def test_a_primary_configuration(victim: Victim) -> None:
    """``--config-path`` and ``--config-name`` read a stranger's file in the place of ATOM's own."""
    victim.write("train.yaml", "hydra: {searchpath: ['pkg://antigravity']}\n")
    assert "hydra" in victim.said("--config-path", str(victim.folder))
    victim.write("train.yaml", f"hydra: {{callbacks: {{x: {TOUCH}}}}}\n")
    assert "hydra" in victim.said("--config-path", str(victim.folder))
    assert "leads out of" in victim.said("--config-name", "../../secret")


def test_a_link_out_of_the_folder(victim: Victim, tmp_path: Path) -> None:
    victim.write("dataset/ok.yaml", "name: local\n")
    (victim.folder / "dataset/x.yaml").symlink_to(tmp_path / "secret.yaml")
    said = victim.said("--config-dir", str(victim.folder), "dataset=x")
    assert "dataset/x.yaml is a link out of" in said


@pytest.mark.parametrize("option", ["../../secret", "/{tmp}/secret", "..", "a/../../../secret"])
def test_an_option_is_a_name(victim: Victim, tmp_path: Path, option: str) -> None:
    option = option.replace("/{tmp}", str(tmp_path))
    said = victim.said(f"architecture={option}")
    assert f"architecture={option} (command line)" in said or "leads out" in said


@pytest.mark.slow
def test_a_kernel_is_a_name(victim: Victim) -> None:
    """Its name is looked up among those declared when the run is composed, never imported."""
    victim.write("experiment/x.yaml", "# @package _global_\nkernels: {attention: /lib/evil.so}\n")
    said = victim.said("--config-dir", str(victim.folder), "+experiment=x")
    assert "kernels.attention=/lib/evil.so" in said
    assert "reference" in said


def test_numbers_on_the_command_line(victim: Victim) -> None:
    assert "training.steps" in victim.said(f"training.steps={'1' * 5000}")
    assert "training.steps" in victim.said(f"training.steps={'1' * 50}")


def test_a_pickle_is_not_read(victim: Victim, tmp_path: Path) -> None:
    (tmp_path / "run.pickle").write_bytes(b"cos\nsystem\n(S'touch mark'\ntR.")
    assert "pickle" in victim.said("--experimental-rerun", f"{tmp_path}/run.pickle")


def test_resolve_and_print(victim: Victim) -> None:
    """``--cfg job --resolve`` shows what a run would be, and keeps to the same rules."""
    victim.write("experiment/x.yaml", "# @package _global_\ndebug: {a: '${oc.env:SECRET}'}\n")
    folder = ("--config-dir", str(victim.folder), "+experiment=x")
    assert "may not read the environment" in victim.said(*folder, "--cfg", "job", "--resolve")


def test_a_run_yaml(victim: Victim) -> None:
    """It is read without Hydra, by the launcher and by every rank."""
    hostile = {
        "debug: !!python/object/apply:os.system ['touch {mark}']": "the tag",
        f"debug: {TOUCH}": "debug._target_",
        "debug: &a [*a]": "has no anchor before it",
        "- x": "no sections",
        "a: [": "is not valid YAML",
    }
    for text, words in hostile.items():
        victim.write("run.yaml", text)
        with pytest.raises(UserError, match=words):
            read(victim.folder / "run.yaml")
        assert not victim.mark.exists()
    victim.write("run.yaml", "architecture: {name: '${oc.env:SECRET}'}\ndebug: {seed: 1}\n")
    with pytest.raises(UserError, match="tokenizer"):
        read(victim.folder / "run.yaml")
    sections = {kind: {"name": "${oc.env:SECRET}"} for kind in ONE}
    victim.write("run.yaml", yaml.safe_dump(sections))
    assert read(victim.folder / "run.yaml").dataset.name == "${oc.env:SECRET}", "it is text"


@pytest.mark.slow
def test_a_run_to_go_on_with(victim: Victim, tmp_path: Path) -> None:
    """A stranger's run folder, given as ``run.dir``."""
    place = tmp_path / "run"
    (place / "checkpoint/step-1").mkdir(parents=True)
    (place / "checkpoint/step-1/.metadata").touch()
    (place / "run.yaml").write_text(f"debug: !!python/object/apply:os.mkdir ['{victim.mark}']")
    assert "the tag" in victim.said("tokenizer=bytes", "device=cpu", f"run.dir={place}")


def test_what_a_configuration_may_do(atom: Callable, tmp_path: Path) -> None:
    """Other keys, the run itself and the clock; and the environment, typed by its user."""
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/x.yaml").write_text(
        "# @package _global_\n"
        "common: &common {warmup_steps: 7}\n"
        "lr_scheduler: *common\n"
        "training: {steps: '${oc.select:training.nothing,${lr_scheduler.warmup_steps}}'}\n"
        "run: {dir: 'runs/${now:%Y}-${hydra:runtime.choices.architecture}'}\n"
        "dataset: {path: '${run.dir}/${dataset.name}'}\n"
    )
    mine = ("train", "--config-dir", "mine", "+experiment=x", "dataset=local", "~common")
    composed = atom(
        *mine, "device=${oc.env:DEVICE}", "--cfg", "job", "--resolve", cwd=tmp_path, DEVICE="cpu"
    )
    assert composed.returncode == 0, composed.stderr
    config = yaml.safe_load(composed.stdout)
    assert config["training"]["steps"] == 7
    assert config["run"]["dir"].endswith("-llama3_tiny")
    assert config["dataset"]["path"] == config["run"]["dir"] + "/local"
    assert config["device"] == "cpu"


def test_limits_are_far_from_what_is_used() -> None:
    """The largest file of ATOM and its plugins is a tenth of every limit."""
    root = Path(__file__).parent.parent
    for file in [*root.glob("conf/**/*.yaml"), *root.glob("plugins/*/*/conf/**/*.yaml")]:
        text = file.read_text()
        yaml_data.check(text, str(file))
        assert len(text) < yaml_data.BYTES / 10
