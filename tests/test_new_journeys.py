"""From ``atom new`` to training, outside of any checkout, with ATOM from wheels."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from atom.cli.new import TEMPLATE, make
from atom.plugin import KINDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = ("device=cpu", "training.steps=2", "training.seq_len=64", "run.dir=run")
KIND_NAMES = [declaration.kind for declaration in KINDS]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(installed: Callable[..., subprocess.CompletedProcess[str]]) -> Run:
    """Run a command that must succeed; return what it prints."""

    def succeed(*command: str, cwd: Path) -> str:
        done = installed(*command, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return succeed


def test_the_wheel_ships_the_template(run: Run, tmp_path: Path) -> None:
    script = "import atom.cli.new as new; print(new.TEMPLATE)"
    shipped = Path(run("python", "-c", script, cwd=tmp_path).strip())
    assert ROOT not in shipped.parents
    assert _files(shipped) == _files(TEMPLATE)


def test_from_nothing_to_training(run: Run, tmp_path: Path) -> None:
    """The commands that ``atom new`` prints, as printed: a build of its own, the package alone."""
    printed = run("atom", "new", "dataset", "one-dataset", cwd=tmp_path)
    install, test, train = (line.split() for line in printed.splitlines()[1:])
    assert (install[:2], test[0], train[:2]) == (["pip", "install"], "pytest", ["atom", "train"])
    try:
        run(*install[:-1], install[-1].strip("'"), cwd=tmp_path)
        assert "one_dataset" in run("atom", "plugins", cwd=tmp_path)
        assert " passed" in run(*test, "-q", cwd=tmp_path).splitlines()[-1]
        run(*train, *SMALL, cwd=tmp_path)
        assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    finally:
        run("pip", "uninstall", "-q", "-y", "one-dataset", cwd=tmp_path)


# ---------------------------------------------------------------------------- all kinds together


@pytest.fixture(scope="module")
def workplace(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a package of each kind, all of them installed."""
    place = tmp_path_factory.mktemp("workplace")
    names = [f"my-{kind}" for kind in KIND_NAMES]
    for kind, name in zip(KIND_NAMES, names, strict=True):
        make(kind, name, place / name)
    packages = [word for name in names for word in ("-e", f"{name}[test]")]
    run("pip", "install", "-q", "--no-build-isolation", *packages, cwd=place)
    yield place
    run("pip", "uninstall", "-q", "-y", *names, cwd=place)


@pytest.fixture(scope="module")
def conforming(workplace: Path, run: Run) -> dict[str, list[str]]:
    """Test all packages in one process, which shares its imports and ranks; return what became of
    the tests of each, ``passed`` or ``skipped``."""
    run(
        *("pytest", "-q", "--import-mode=importlib", "--junitxml=report.xml"),
        *(f"my-{kind}" for kind in KIND_NAMES),
        cwd=workplace,
    )
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(workplace / "report.xml").iter("testcase"):
        suite = case.attrib["classname"].rpartition(".")[2]
        outcome = "skipped" if case.find("skipped") is not None else "passed"
        found.setdefault(suite, []).append(outcome)
    return found


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_what_is_made_conforms(kind: str, conforming: dict[str, list[str]]) -> None:
    assert conforming[f"TestMy{kind.capitalize()}"].count("passed") > 5


def test_what_is_made_trains_together(workplace: Path, run: Run) -> None:
    """One run of a new package of each kind, chosen as ``atom new`` prints."""
    groups = {declaration.kind: declaration.section for declaration in KINDS}
    chosen = [f"{group}=my_{kind}" for kind, group in groups.items()]
    listed = run("atom", "plugins", cwd=workplace)
    assert not [kind for kind in KIND_NAMES if f"my_{kind}" not in listed]
    chosen.append("callbacks.my_callback.interval=1")
    run("atom", "train", *chosen, "launch.ranks=2", *SMALL, cwd=workplace)
    assert len((workplace / "run/metrics.jsonl").read_text().splitlines()) == 2
    recorded = yaml.safe_load((workplace / "run/run.yaml").read_text())
    row = json.loads((workplace / "run/metrics.jsonl").read_text().splitlines()[0])
    assert row["callbacks"]["my_callback"]["largest_gradient"] > 0
    for kind, group in groups.items():
        section = recorded[group]
        section = section[f"my_{kind}"] if kind in ("callback", "evaluator") else section
        named = section["rms_norm"] if kind == "kernel" else section["name"]
        assert named.rpartition(":")[2] == f"my_{kind}", group


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
