"""The conformance kit finds what is wrong: with any component, with a tokenizer, with a dataset.

``tests/mutants_data`` holds two *twins*, packages that keep every promise, and a list of mutants:
the twin with one fault. All of them are installed in a temporary folder and run by a pytest of its
own, in one session, as an author would: the twins pass, and of each mutant the test that is named
there fails, and says why.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from atom.testing.installing import describe

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).with_name("mutants_data")

Outcomes = dict[str, dict[str, list[str]]]
"""Package -> test -> what went wrong in each of its cases, "" for nothing."""

MODULE = """
from atom.testing import conformance

def sample(folder):
    for shard in range(3):
        lines = [f"line {n} of {shard}" for n in range(15 + shard)]
        (folder / f"{shard}.txt").write_text("\\n".join(lines))
    return {"path": folder}

def change(folder):
    with (folder / "1.txt").open("a") as stream:
        stream.write("!")
    return {"path": folder}

def bad_sample(folder):
    parameters = sample(folder)
    (folder / "2.txt").write_bytes(b"good\\ngood\\nb\\xffd\\n")
    return parameters, "2.txt", 3

"""

LINES = {
    "twin_tokenizer": 'conformance("tokenizer:COMPONENT", characters=64)',
    "twin_dataset": 'conformance("dataset:COMPONENT").having('
    "sample=sample, change=change, bad_sample=bad_sample)",
}


@dataclass(frozen=True)
class Mutant:
    """A twin's file, in which ``old`` becomes ``new``; the test that finds it, and its words.

    A file that the twin has not is added.
    """

    twin: str
    name: str
    file: str
    new: str
    caught_by: str
    says: str
    old: str = ""
    component: str = ""

    @property
    def package(self) -> str:
        return f"{self.twin}_{self.name}"

    def install(self, folder: Path) -> str:
        """Write the package into ``folder``; return its conformance line."""
        files = read(self.twin)
        if self.file in files:
            assert files[self.file].count(self.old) == 1, f"{self.name}: {self.old!r}"
            files[self.file] = files[self.file].replace(self.old, self.new)
        else:
            files[self.file] = self.new
        return install(self.twin, self.package, files, folder, self.component or self.twin)


def read(twin: str) -> dict[str, str]:
    """Return the files of a twin."""
    found = [p for p in (FOLDER / twin).rglob("*") if p.suffix in (".py", ".yaml")]
    return {path.relative_to(FOLDER / twin).as_posix(): path.read_text() for path in found}


def install(twin: str, package: str, files: dict[str, str], folder: Path, component: str) -> str:
    """Write a package as pip would, under another name than the twin's."""
    for name, text in files.items():
        path = folder / package / name.replace(twin, package)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(twin, package))
    describe(folder, package)
    line = LINES[twin].replace("COMPONENT", component.replace(twin, package))
    return f"Test_{package} = {line}\n"


TWINS = tuple(LINES)
MUTANTS = [
    Mutant(twin, name, **mutant)
    for twin, mutants in yaml.safe_load((FOLDER / "mutants.yaml").read_text()).items()
    for name, mutant in mutants.items()
]


@pytest.fixture(scope="module")
def outcomes(
    conforms: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcomes:
    """Run pytest once, on the twins' whole suites and the one test of each mutant."""
    folder = tmp_path_factory.mktemp("author")
    installed = folder / "installed"
    lines = [install(twin, f"whole_{twin}", read(twin), installed, twin) for twin in TWINS]
    lines += [mutant.install(installed) for mutant in MUTANTS]
    (folder / "test_all.py").write_text(MODULE + "".join(lines))
    chosen = [f"test_all.py::Test_whole_{twin}" for twin in TWINS]
    chosen += [f"test_all.py::Test_{m.package}::{m.caught_by}" for m in MUTANTS]
    options = ("--strict-markers", "--junitxml=report.xml")
    done = conforms(*options, *chosen, cwd=folder, timeout=1500, PYTHONPATH=str(installed))
    assert (folder / "report.xml").is_file(), done.stdout + done.stderr
    found: Outcomes = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        tests = found.setdefault(case.get("classname", "").rpartition("Test_")[2], {})
        wrong = [e for e in case if e.tag in ("failure", "error")]
        words = "".join(f"{e.get('message')}\n{e.text}" for e in wrong)
        tests.setdefault(case.get("name", "").partition("[")[0], []).append(words)
    return found


@pytest.mark.parametrize("twin", TWINS)
def test_the_twin_passes(twin: str, outcomes: Outcomes) -> None:
    tests = outcomes[f"whole_{twin}"]
    assert {name: words for name, words in tests.items() if any(words)} == {}
    assert {mutant.caught_by for mutant in MUTANTS if mutant.twin == twin} <= set(tests)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.package)
def test_the_mutant_is_caught(mutant: Mutant, outcomes: Outcomes) -> None:
    words = "".join(outcomes[mutant.package][mutant.caught_by])
    assert words, "the test passes"
    assert mutant.says in words


def test_every_promise_has_a_mutant(outcomes: Outcomes) -> None:
    promises = {name for twin in TWINS for name in outcomes[f"whole_{twin}"]}
    assert promises == {mutant.caught_by for mutant in MUTANTS}
