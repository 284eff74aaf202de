"""A plugin kind is said once: a class, a suite and a template make all else of it.

The tests add two kinds to a copy of ATOM, as a developer would, and use them by the real command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.testing.installing import describe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

DECLARATIONS = '''
@dataclass(frozen=True, kw_only=True)
class Greeter(Declaration):
    """Words to begin with. ``greet(config) -> str``."""

    kind = "greeter"
    references = ("config", "greet")
    change = "harmless"

    greet: str


@dataclass(frozen=True, kw_only=True)
class Observer(Declaration):
    """Something that looks on. ``observe(config, context) -> str``."""

    kind = "observer"
    section = "observers"
    chosen = "many"
    references = ("config", "observe")

    observe: str


__all__ += ["Greeter", "Observer"]

'''

SUITE = """
from atom.testing.opened import opened
from atom.testing.suites.component import ComponentSuite


class {0}Suite(ComponentSuite):
    kind = "{1}"

    def test_says_something(self, component, config):
        assert opened(component, config).call("{2}")


CONFORMANCE = {0}Suite
"""

INIT = """
from atom.plugin import {0}, hookimpl

@hookimpl
def atom_{1}s():
    yield {0}(
        name="{name}",
        summary="a {1} for a test",
        config="{name}.code:Config",
        {2}="{name}.code:{2}",
    )
"""

GREET = """
from pydantic import BaseModel, ConfigDict, Field

class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    volume: int = Field(default=3, ge=1, description="of the words")

def greet(config):
    return "hello" + "!" * config.volume
"""

OBSERVE = """
from pydantic import BaseModel, ConfigDict, Field
from atom.plugin import Greeter
from atom.plugin.parameters import Component

class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    every: int = Field(default=10, ge=1, description="steps")
    greeter: Component[Greeter] | None = Field(default=None, description="says what is seen")

def observe(config, context):
    if config.greeter is None:
        return f"every {config.every}"
    return context.open(Greeter, config.greeter).call("greet")
"""

TEMPLATE = {
    "README.md": "# [[ name ]]\n\n[[ what ]].\n\n```sh\natom train greeter=[[ package ]]\n```\n",
    "[[ package ]]/__init__.py": INIT.format("Greeter", "greeter", "greet", name="[[ package ]]"),
    "[[ package ]]/code.py": GREET,
    "[[ package ]]/conf/greeter/[[ package ]].yaml": "name: [[ package ]]\nvolume: 3\n",
    "tests/test_conformance.py": "from atom.testing import conformance\n\n"
    'TestIt = conformance("greeter:[[ package ]]")\n',
}

WATCHERS = {
    "__init__.py": INIT.format("Observer", "observer", "observe", name="watchers"),
    "code.py": OBSERVE,
    "conf/__init__.py": "",
    "conf/observers/often.yaml": "often: {name: watchers, every: 1}\n",
    "conf/observers/seldom.yaml": "seldom: {name: watchers, every: 100}\n",
}

COMMANDS = """
import io, json, os, sys, traceback
import atom.cli, atom.cli.plugins, atom.cli.train

for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        sys.argv = ["atom", *arguments]
        code = 70
        try:
            code = atom.cli.main(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, open(f"{number}.out").read(), open(f"{number}.err").read()]))
"""

TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4"),
    *("training.steps=1", "device=cpu", "metrics=none", "checkpoint.enable=false"),
)


class Copy:
    """A copy of ATOM with two more kinds, and a plugin of each installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree, self.site, self.work = (folder / name for name in ("tree", "site", "work"))
        self.work.mkdir()
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("atom", "conf"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=ignored)
        declarations = self.tree / "atom" / "plugin" / "declarations.py"
        text = declarations.read_text()
        assert text.count("KINDS: ") == 1
        declarations.write_text(text.replace("KINDS: ", f"{DECLARATIONS}KINDS: "))
        suites = self.tree / "atom" / "testing" / "suites"
        (suites / "greeter.py").write_text(SUITE.format("Greeter", "greeter", "greet"))
        (suites / "observer.py").write_text(SUITE.format("Observer", "observer", "observe"))
        write(
            self.tree / "atom" / "templates" / "greeter",
            {f"{name}.jinja": text for name, text in TEMPLATE.items()},
        )
        self.made = self.run(["new", "greeter", "my-hello"])[0]
        self.install("my_hello", self.work / "my-hello" / "my_hello")
        write(folder / "watchers", WATCHERS)
        self.install("watchers", folder / "watchers")

    def environment(self) -> dict[str, str]:
        cache = {"ATOM_CACHE": str(self.folder / "cache"), "XDG_CONFIG_HOME": str(self.folder)}
        return os.environ | cache | {"PYTHONPATH": f"{self.tree}:{self.site}", "COLUMNS": "100"}

    def install(self, name: str, source: Path) -> None:
        shutil.copytree(source, self.site / name)
        record = describe(self.site, name, version="1.0") / "RECORD"
        files = [path for path in (self.site / name).rglob("*") if path.is_file()]
        files += [*record.parent.iterdir(), record]
        record.write_text("".join(f"{path.relative_to(self.site)},,\n" for path in files))

    def run(self, *commands: list[str]) -> list[tuple[int, str, str]]:
        """Run ``atom …`` for each command, in forks of one process; return what each said."""
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            cwd=self.work,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("kinds"))


def test_new_makes_its_template(copy: Copy) -> None:
    code, out, _ = copy.made
    assert code == 0
    assert "made my-hello, a package with the greeter my_hello" in out
    assert out.splitlines()[-1] == "  atom train greeter=my_hello"
    pyproject = (copy.work / "my-hello" / "pyproject.toml").read_text()
    assert 'description = "A greeter for ATOM"' in pyproject


def test_plugins_lists_it(copy: Copy) -> None:
    every, greeters, unknown = copy.run(
        ["plugins", "--json"], ["plugins", "--kind", "greeter"], ["new", "greter", "x"]
    )
    kinds = {row["name"]: row["kind"] for row in json.loads(every[1]) if row["status"] == "ok"}
    assert kinds["my_hello"] == "greeter"
    assert kinds["watchers"] == "observer"
    assert [line.split()[:2] for line in greeters[1].splitlines()[1:]] == [["greeter", "my_hello"]]
    assert "there is no kind greter; did you mean greeter?" in unknown[2]


MISTAKES = {
    "none is chosen": (
        [],
        "greeter (default): is required and has no value; valid: greeter=my_hello",
    ),
    "no such option": (["greeter=my_helo"], "greeter=my_helo (command line): there is no such opt"),
    "no such component": (
        ["greeter=my_hello", "greeter.name=my_helo"],
        "greeter.name=my_helo (command line): there is no greeter my_helo; did you mean my_hello",
    ),
    "no such parameter": (
        ["greeter=my_hello", "greeter.volum=4"],
        "greeter.volum=4 (command line): volum is no key here; did you mean volume?",
    ),
    "a wrong value": (
        ["greeter=my_hello", "greeter.volume=0"],
        "greeter.volume=0 (command line): must be at least 1",
    ),
    "a list where there is one": (
        ["greeter=[my_hello,my_hello]"],
        "greeter (command line): takes one option, and no list of them",
    ),
    "of many: a wrong value": (
        ["greeter=my_hello", "observers=often", "observers.often.every=0"],
        "observers.often.every=0 (command line): must be at least 1",
    ),
    "of many: no such parameter": (
        ["greeter=my_hello", "observers.a={name: watchers, evry: 2}"],
        "observers.a.evry=2 (command line): evry is no key here; did you mean every?",
    ),
    "of many: no such component": (
        ["greeter=my_hello", "observers.a.name=watcher"],
        "observers.a.name=watcher (command line): there is no observer watcher; did you mean watch",
    ),
    "of many: no name": (
        ["greeter=my_hello", "observers.a.every=2"],
        "observers.a.name (default): is required and has no value",
    ),
    "of many: a component of another kind": (
        ["greeter=my_hello", "observers.a={name: watchers, greeter: {name: my_hello, volum: 2}}"],
        "observers.a.greeter.volum=2 (command line): volum is no key here; did you mean volume?",
    ),
}


def test_mistakes_are_told_as_of_any_kind(copy: Copy) -> None:
    """By key, origin, value and what is valid; nothing is written."""
    said = copy.run(*(["train", *TINY, *words, "run.dir=run"] for words, _ in MISTAKES.values()))
    for (name, (_, sentence)), (code, out, err) in zip(MISTAKES.items(), said, strict=True):
        assert code == 2, (name, out, err)
        assert sentence in err, name
        assert len(err.splitlines()) == 1, name
    assert not (copy.work / "run").exists()


def test_a_run_has_it(copy: Copy) -> None:
    """In the composed run, ``run.yaml``, ``lock.json`` and the ranks' packages; a list of options
    of a kind that a run has many of is composed to a section each."""
    chosen = ["greeter=my_hello", "greeter.volume=5", "observers=[often,seldom]"]
    chosen += ["observers.seldom.greeter={name: my_hello, volume: 2}"]
    composed, dry, trained = copy.run(
        ["train", *TINY, *chosen, "--cfg", "job"],
        ["train", *TINY, *chosen, "--dry-run"],
        ["train", *TINY, *chosen, "run.dir=run"],
    )
    assert composed[0] == dry[0] == trained[0] == 0, composed[2] + dry[2] + trained[2]
    sections = yaml.safe_load(composed[1])
    assert sections["greeter"] == {"name": "my_hello", "volume": 5}
    assert sections["observers"]["often"] == {"name": "watchers", "every": 1}
    assert "observers.seldom.greeter my_hello (my_hello 1.0)" in dry[1]
    run = yaml.safe_load((copy.work / "run" / "run.yaml").read_text())
    assert run["greeter"] == {"name": "my_hello", "volume": 5}
    assert run["observers"]["seldom"] == {
        "name": "watchers",
        "every": 100,
        "greeter": {"name": "my_hello", "volume": 2},
    }
    assert {"my_hello", "watchers"} <= set(run["plugins"]["used"])
    lock: dict[str, Any] = json.loads((copy.work / "run" / "lock.json").read_text())
    found = {row.pop("key"): row for row in lock["components"]}
    hello = {"kind": "greeter", "name": "my_hello", "package": "my_hello", "version": "1.0"}
    assert found["greeter"] == found["observers.seldom.greeter"] == hello
    assert found["observers.often"]["kind"] == "observer"
    assert found["architecture"]["package"] == "atom-llama"


def test_the_conformance_kit_has_its_suite(copy: Copy) -> None:
    """The one of the template passes, with the checks that every kind has; so does one of many."""
    (copy.work / "test_watchers.py").write_text(
        "from atom.testing import conformance\n\n"
        'TestIt = conformance("observer:watchers", greeter={"name": "my_hello"})\n'
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir=."),
            *("my-hello/tests", "test_watchers.py", "-v"),
        ],
        cwd=copy.work,
        env=copy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for module in ("my-hello/tests/test_conformance.py", "test_watchers.py"):
        for check in ("says_something", "a_config_group_file_chooses_it", "pickles"):
            assert f"{module}::TestIt::test_{check} PASSED" in done.stdout
