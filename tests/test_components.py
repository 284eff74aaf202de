"""A component that uses components: the plugin of its documentation, by the real command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from atom_docs.pages import DOCS, blocks
from opening_plugins import LOOP, SHAPES, WRAPPER

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]

PAGE = DOCS / "plugins" / "components.md"

TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4"),
    *("training.steps=1", "device=cpu", "metrics=none"),
)
WEB = "dataset.sources.web={name: local, path: web}"
BOOKS = "dataset.sources.books={name: 'atom_datasets:local', path: books, repeat: 2}"
MIXED = ("dataset=repeated", WEB, BOOKS)


@pytest.fixture
def run(tmp_path: Path, install: Callable[..., Path], forked: Command) -> Command:
    """The command, with the page's plugin installed and two folders of texts to read."""
    files = {block.file: block.text for block in blocks(PAGE) if block.file is not None}
    install("repeated", {name.removeprefix("repeated/"): text for name, text in files.items()})
    install("loop", LOOP)
    install("shapes", SHAPES)
    install("wrapper", WRAPPER)
    for name in ("web", "books"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(f"text {number} of {name} " * 9)
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')

    def command(*arguments: str, by: Command = forked, **extra: str) -> subprocess.CompletedProcess:
        site = {"PYTHONPATH": str(tmp_path / "site"), "ATOM_CACHE": str(tmp_path / "cache")}
        return by(*arguments, cwd=tmp_path, **site, **extra)

    return command


MISTAKES = {
    "no such parameter": (
        ["dataset.sources.web.pth=web"],
        "dataset.sources.web.pth=web (command line): pth is no key here; did you mean path?",
    ),
    "a parameter of the one that opens it": (
        ["dataset.sources.web.repat=2"],
        "dataset.sources.web.repat=2 (command line): repat is no key here; did you mean"
        " repeat or path?",
    ),
    "a wrong value": (
        ["dataset.sources.books.format=xml"],
        "dataset.sources.books.format=xml (command line): must be",
    ),
    "a wrong value beside the parameters": (
        ["dataset.sources.books.repeat=0"],
        "dataset.sources.books.repeat=0 (command line): must be at least 1",
    ),
    "no such component": (
        ["dataset.sources.web.name=locl"],
        "dataset.sources.web.name=locl (command line): there is no dataset locl; did you mean",
    ),
    "no name": (
        ["dataset.sources.more.path=web"],
        "dataset.sources.more.name (command line): is required and has no value",
    ),
    "no component": (
        ["dataset.sources.more=5"],
        "dataset.sources.more=5 (command line): must be a section of keys",
    ),
    "a name alone": (
        ["dataset.sources.more=locl"],
        "dataset.sources.more.name=locl (command line): there is no dataset locl; did you mean",
    ),
    "nothing to read": (
        ["dataset.sources.web.path=nowhere"],
        "dataset.sources.web.path=nowhere (command line): there is no such file or folder",
    ),
    "keys in the sentence": (
        ["dataset.sources.web.path=[web,rows.jsonl]"],
        "choose one with dataset.sources.web.format",
    ),
    "one in another of its kind": (
        ["dataset.sources.more={name: repeated, sources: {a: {name: local, pth: web}}}"],
        "dataset.sources.more.sources.a.pth=web (command line): pth is no key here; did you mean",
    ),
    "one in another of its kind: nothing to read": (
        ["dataset.sources.more={name: repeated, sources: {a: {name: local, path: no}}}"],
        "dataset.sources.more.sources.a.path=no (command line): there is no such file or folder",
    ),
    "one that opens itself": (
        ["dataset=loop"],
        "dataset.again (command line): components open each other in a circle: loop → loop",
    ),
    "one that opens itself, in a mixture": (
        ["dataset.sources.more=loop"],
        "dataset.sources.more.again (command line): components open each other in a circle: "
        "repeated → loop → loop",
    ),
    "in a dataclass": (
        ["dataset=shapes", "dataset.held.data={name: local, pth: web}"],
        "dataset.held.data.pth=web (command line): pth is no key here; did you mean path?",
    ),
    "in a set": (
        ["dataset=shapes", "dataset.every=[{name: locl}]"],
        "dataset.every.0.name=locl (command line): there is no dataset locl",
    ),
    "in a field with an alias": (
        ["dataset=shapes", "dataset.from={name: local, pth: web}"],
        "dataset.from.pth=web (command line): pth is no key here; did you mean path?",
    ),
    "a strategy": (
        ["dataset=shapes", "dataset.layout={name: mesh, tensor_parallel_degre: 2}"],
        "dataset.layout.tensor_parallel_degre=2 (command line): tensor_parallel_degre is no key",
    ),
    "a strategy with a wrong degree": (
        ["dataset=shapes", "dataset.layout={name: mesh, tensor_parallel_degree: 0}"],
        "dataset.layout.tensor_parallel_degree=0 (command line): valid: a whole number from 1",
    ),
    "a field without a kind": (
        ["dataset=shapes", "dataset.any=stdlib"],
        "dataset.any (command line): dataset shapes of shapes 1.0 cannot be used: a field is a",
    ),
    "a key of the field that is also a parameter": (
        ["dataset=shapes", "dataset.weighted={name: local, path: web}"],
        "dataset.weighted.path (command line): dataset local of atom-datasets 0.1.0 cannot be used"
        " here: its parameter path can never be set",
    ),
    "a parameter called name": (
        ["dataset=shapes", "dataset.held.data=named"],
        "dataset named of shapes 1.0 cannot be used here: its parameter name can never be set",
    ),
    "an odd number beside the parameters": (
        ["dataset=shapes", "dataset.weighted={name: stdlib, weight: true}"],
        "dataset.weighted.weight=true (command line): valid: a finite number",
    ),
    "true for a number in a section": (
        ["dataset=shapes", "dataset.inner.count=true"],
        "dataset.inner.count=true (command line): valid: a finite number",
    ),
    "infinity in a collection": (
        ["dataset=shapes", "dataset.shares.web=[1.0,inf]"],
        "dataset.shares.web=[1.0, inf] (command line): valid: a finite number",
    ),
    "one that cannot be imported": (
        ["dataset=shapes", "dataset.held.data=broken"],
        "dataset broken of shapes 1.0 cannot be used: RuntimeError: half installed (shapes/broken",
    ),
    "no package": (
        ["dataset=shapes", "dataset.held.data=':local'"],
        "dataset.held.data.name=:local (command line): must be NAME or PACKAGE:NAME",
    ),
    "one that opens itself without end": (
        ["dataset=spiral"],
        "components open each other more than 16 deep",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_the_users_keys(mistake: str, run: Command, tmp_path: Path) -> None:
    """Key, origin, value and what is valid, in one sentence, without torch; nothing is written."""
    words, sentence = MISTAKES[mistake]
    chosen = words if words[0].startswith("dataset=") else [*MIXED, *words]
    result = run("train", *TINY, *chosen, "run.dir=run")
    assert result.returncode == 2, result.stdout + result.stderr
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_component_cannot_end_the_command(run: Command) -> None:
    """A plugin that calls sys.exit(0) has a bug: the command did not do what was asked."""
    result = run("train", *TINY, "dataset=shapes", "dataset.held.data=exits")
    assert result.returncode == 1
    assert "dataset.held.data: a component called sys.exit(0)" in result.stderr


def test_a_component_cannot_end_a_rank(run: Command, atom: Command) -> None:
    """Its exit code of 0 would say that the run has trained."""
    words = ("dataset=shapes", "dataset.name=ends", "launch.max_restarts=0", "run.dir=run")
    result = run("train", *TINY, *words, by=atom)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "code of a plugin called sys.exit(0)" in result.stderr


def test_a_file_is_named_as_the_origin(run: Command, tmp_path: Path) -> None:
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    (place / "mixed.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /dataset: repeated}]\n"
        "dataset: {sources: {web: {name: local, pth: web}}}\n"
    )
    result = run("train", *TINY, "+experiment=mixed", "--config-dir=conf")
    assert result.returncode == 2
    assert f"dataset.sources.web.pth=web ({place / 'mixed.yaml'}): pth is no key" in result.stderr


def test_the_trust_lists_apply(run: Command) -> None:
    result = run("train", *TINY, *MIXED, ATOM_PLUGINS_BLOCK="atom-datasets")
    assert result.returncode == 2
    assert "dataset.sources.web.name=local (command line): its plugin atom-datasets is blocked" in (
        result.stderr
    )


def test_an_option_chooses_a_nested_component(run: Command) -> None:
    """With Hydra's package of a group, on the command line and in an option's defaults list."""
    typed = run(
        "train", *TINY, "dataset=repeated", "+dataset@dataset.sources.web=stdlib", "--cfg", "job"
    )
    assert typed.returncode == 0, typed.stderr
    assert yaml.safe_load(typed.stdout)["dataset"]["sources"]["web"]["name"] == "stdlib"
    written = run("train", *TINY, "dataset=given", "--cfg", "job")
    assert written.returncode == 0, written.stderr
    assert yaml.safe_load(written.stdout)["dataset"]["inner"]["name"] == "stdlib"


def test_a_launcher_wraps_another(run: Command) -> None:
    """A component of any kind opens one: by the context that it is given, and the keys are told."""
    words = ("launcher=wrapper", "launcher.nodes=1", "launcher.dry_run=true")
    wrong = run("train", *TINY, *words, "launcher.inner.name=slrm")
    assert wrong.returncode == 2
    assert "launcher.inner.name=slrm (command line): there is no launcher slrm" in wrong.stderr
    wrong = run("train", *TINY, *words, "launcher.inner.argumnts=[a]")
    assert wrong.returncode == 2
    assert "argumnts is no key here; did you mean arguments?" in wrong.stderr


def test_files_of_others_decide_no_launcher(run: Command, tmp_path: Path) -> None:
    """What is run where a run is submitted comes from the command line, wherever it stands."""
    place = tmp_path / "conf" / "experiment"
    place.mkdir(parents=True)
    for name, section in (("nested", "dataset: {submit"), ("own", "launcher: {inner")):
        (place / f"{name}.yaml").write_text(
            f"# @package _global_\n{section}: {{name: slurm, arguments: [--wrap=x]}}}}\n"
        )
    nested = run("train", *TINY, "dataset=loop", "+experiment=nested", "--config-dir=conf")
    assert nested.returncode == 2
    said = f"dataset.submit.name=slurm ({place / 'nested.yaml'}): a file must not set what a launch"
    assert said in nested.stderr
    words = ("launcher=wrapper", "launcher.dry_run=true", "+experiment=own", "--config-dir=conf")
    own = run("train", *TINY, *words)
    assert own.returncode == 2
    assert f"({place / 'own.yaml'}): a file must not set what a launcher runs" in own.stderr


def test_ranks_train_on_it(run: Command, atom: Command, tmp_path: Path) -> None:
    """With the packages of what is nested, which ``lock.json`` and a dry run list by key."""
    dry = run("train", *TINY, *MIXED, "--dry-run", by=atom)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "dataset.sources.books local (atom-datasets 0.1.0)" in dry.stdout
    words = ("parallelism=fsdp", "launch.ranks=2", "run.dir=run")
    result = run("train", *TINY, *MIXED, *words, by=atom)
    assert result.returncode == 0, result.stdout + result.stderr
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert written["dataset"]["sources"]["web"] == {"name": "local", "path": "web"}
    assert {"repeated", "atom-datasets"} <= set(written["plugins"]["used"])
    lock = json.loads((tmp_path / "run" / "lock.json").read_text())
    found = {row["key"]: (row["kind"], row["name"], row["package"]) for row in lock["components"]}
    assert found["dataset"] == ("dataset", "repeated", "repeated")
    assert found["dataset.sources.web"] == ("dataset", "local", "atom-datasets")
