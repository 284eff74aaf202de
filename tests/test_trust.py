"""Installed does not mean loaded: allowed, blocked and locked plugins, through the real command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.compose import plugin_lists

pytestmark = pytest.mark.slow

# Whoever imports it leaves a trace.
MARKED = """
import os, pathlib
pathlib.Path(os.environ["MARK"]).touch()
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    yield Architecture(name="marked_net", summary="a net", build="marked_plugin.build:net")
"""
FILES = {
    "__init__.py": MARKED,
    "build.py": "def net(config, context): ...\n",
    "conf/architecture/marked.yaml": "name: marked_net\n",
}


class Marked:
    """The command, with a package installed that leaves a trace when it is imported."""

    def __init__(self, command: Callable, site: Path, folder: Path) -> None:
        self._command = command
        self.site = site
        self.mark = folder / "mark"
        self.settings = folder / "settings" / "atom" / "plugins.yaml"
        self.settings.parent.mkdir(parents=True)
        self.folder = folder / "work"
        self.folder.mkdir()

    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(self.site),
            "MARK": str(self.mark),
            "XDG_CONFIG_HOME": str(self.settings.parents[1]),
        }

    def run(self, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
        self.mark.unlink(missing_ok=True)
        return self._command(*arguments, cwd=self.folder, **self.environment(), **environment)

    def refused(self, *arguments: str, **environment: str) -> str:
        """Return the one sentence of ``atom train``, which imported nothing and wrote nothing."""
        result = self.run("train", *arguments, **environment)
        said = result.stderr.strip()
        assert result.returncode == 2, said
        assert len(said.splitlines()) == 1, said
        assert not self.mark.exists(), "the plugin was imported"
        assert not list(self.folder.iterdir()), "something was left behind"
        return said


@pytest.fixture
def marked(forked: Callable, install: Callable, tmp_path: Path) -> Marked:
    return Marked(forked, install("marked-plugin", FILES), tmp_path)


def rows(result: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    assert result.returncode == 0, result.stderr
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_an_installed_plugin_is_loaded_if_nobody_objects(marked: Marked) -> None:
    """What the tests below rest on: the trace is left, and the option is there."""
    result = marked.run("train", "architecture=marked", "--cfg", "job")
    assert yaml.safe_load(result.stdout)["architecture"]["name"] == "marked_net"
    assert marked.mark.exists()


@pytest.mark.parametrize("place", ["environment", "user", "command line", "allow"])
def test_a_blocked_plugin_is_never_imported(marked: Marked, place: str) -> None:
    environment, overrides, says = {}, (), "marked[_]*"
    if place == "environment":
        environment, says = {"ATOM_PLUGINS_BLOCK": "other, Marked.*"}, "ATOM_PLUGINS_BLOCK"
    elif place == "allow":
        environment, says = {"ATOM_PLUGINS_ALLOW": "atom-*"}, "ATOM_PLUGINS_ALLOW=atom-*"
    elif place == "user":
        marked.settings.write_text("block: ['marked_*']\n")
        says = str(marked.settings)
    else:
        overrides, says = ("plugins.block=[marked-*]",), "plugins.block=[marked-*]"

    if not overrides:
        listed = marked.run("plugins", "--json", **environment)
        row = rows(listed)["marked_plugin"]
        assert (row["status"], row["package"]) == ("blocked", "marked-plugin")
        assert says in row["reason"]
        assert not marked.mark.exists()
        assert "blocked" in marked.run("plugins", **environment).stdout

    composed = marked.run("train", "--cfg", "job", *overrides, **environment)
    assert composed.returncode == 0, composed.stderr
    assert not marked.mark.exists()

    said = marked.refused("architecture=marked", *overrides, **environment)
    assert "architecture=marked (command line)" in said
    assert "marked-plugin" in said
    assert "blocked" in said
    assert says in said
    for name in ("marked_net", "marked_plugin:marked_net"):
        said = marked.refused(f"architecture.name={name}", *overrides, **environment)
        assert "its plugin marked-plugin is blocked" in said
        assert says in said


def test_what_hydra_would_import_of_a_blocked_plugin(marked: Marked, install: Callable) -> None:
    install("marked-plugin", FILES | {"../hydra_plugins/marked/__init__.py": MARKED})
    record = next(marked.site.glob("marked_plugin-*/RECORD"))
    record.write_text(record.read_text().replace("marked_plugin/../", ""))
    composed = marked.run("train", "--cfg", "job", "plugins.block=[marked-plugin]")
    assert composed.returncode == 0, composed.stderr
    assert not marked.mark.exists()


def test_every_list_of_allowed_packages_must_name_a_package(tmp_path: Path) -> None:
    environment = {"ATOM_PLUGINS_ALLOW": "a-*,b", "XDG_CONFIG_HOME": str(tmp_path)}
    trust = plugin_lists.trust(["plugins.allow=[a-x,b,c]", "training.steps=1"], environment)
    assert [name for name in ("a-x", "A.X", "a-y", "b", "c") if not trust.refusal(name)] == [
        "a-x",
        "A.X",
        "b",
    ]
    # Two lists that must both match are the packages that both match.
    assert trust.section(["b", "a-x"], [])["allow"] == ["a-x", "b"]
    trust = plugin_lists.trust(["plugins.allow=[a-*]", "plugins.block=a-x"], {})
    assert trust.refusal("a-y") is None
    assert trust.refusal("a-x") == "by plugins.block=[a-x]"
    assert trust.section([], [])["allow"] == ["a-*"]


@pytest.mark.parametrize("text", ["allow: 3\n", "alow: [x]\n", "[x]\n", "allow: [\n"])
def test_a_list_that_cannot_be_read_loads_nothing(marked: Marked, text: str) -> None:
    marked.settings.write_text(text)
    assert str(marked.settings) in marked.refused("--cfg", "job")


@pytest.mark.parametrize(
    "override",
    ["plugins.block=a,b", "plugins.blok=[a]", "~plugins.block", "plugins={block: [a]}"],
)
def test_a_word_that_cannot_be_read_loads_nothing(marked: Marked, override: str) -> None:
    assert "plugins.block=[PATTERN,…]" in marked.refused("--cfg", "job", override)


@pytest.mark.parametrize("section", ["allow: ['*']", "block: [x]", "locked: x", "used: [x]"])
def test_a_file_does_not_decide(marked: Marked, tmp_path: Path, section: str) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/x.yaml").write_text(
        f"# @package _global_\nplugins: {{{section}}}\n"
    )
    result = marked.run("train", "--config-dir", f"{tmp_path}/mine", "+experiment=x")
    assert result.returncode == 2, result.stdout
    assert "a file cannot decide which plugins are loaded" in result.stderr
    assert "x.yaml" in result.stderr


# ---------------------------------------------------------------------------- the lock


@pytest.fixture
def locked(marked: Marked, tmp_path: Path) -> Path:
    result = marked.run("plugins", "lock", str(tmp_path / "plugins.lock"))
    assert result.returncode == 0, result.stderr
    assert not marked.mark.exists(), "locking imports nothing"
    return tmp_path / "plugins.lock"


def test_the_lock_holds_every_file(locked: Path, marked: Marked) -> None:
    plugins = json.loads(locked.read_text())["plugins"]
    entry = plugins["marked-plugin"]
    assert entry["version"] == "1.0"
    files = {name for name in entry["files"] if name.startswith("marked_plugin/")}
    assert files == {f"marked_plugin/{name}" for name in FILES}
    assert {len(digest) for digest in entry["files"].values()} == {64}
    assert "marked_plugin-1.0.dist-info/entry_points.txt" in entry["files"]
    assert "atom_llama/build.py" in plugins["atom-llama"]["files"], "an editable install"
    composed = marked.run("train", "--cfg", "job", f"plugins.locked={locked}")
    assert composed.returncode == 0, composed.stderr


def edit(site: Path) -> None:
    (site / "marked_plugin/build.py").write_text("def net(config, context): pass\n")


def edit_config(site: Path) -> None:
    (site / "marked_plugin/conf/architecture/marked.yaml").write_text("name: other\n")


def add(site: Path) -> None:
    (site / "marked_plugin/more.py").touch()


def remove(site: Path) -> None:
    (site / "marked_plugin/build.py").unlink()


def change_version(site: Path) -> None:
    (site / "marked_plugin-1.0.dist-info").rename(site / "marked_plugin-1.1.dist-info")
    metadata = site / "marked_plugin-1.1.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))


def uninstall(site: Path) -> None:
    (site / "marked_plugin-1.0.dist-info/entry_points.txt").unlink()


DIFFERENCES = {
    edit: "the file marked_plugin/build.py of the package marked-plugin 1.0 has changed",
    edit_config: "the file marked_plugin/conf/architecture/marked.yaml of the package marked-pl",
    add: "the package marked-plugin 1.0 has a file that is not in the lock: marked_plugin/more.py",
    remove: "the file marked_plugin/build.py of the package marked-plugin 1.0 is missing",
    change_version: "the package marked-plugin is 1.1 and not 1.0",
    uninstall: "the package marked-plugin 1.0 is in the lock and not installed",
}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda change: change.__name__)
def test_what_differs_is_refused(
    difference: Callable[[Path], None], locked: Path, marked: Marked
) -> None:
    difference(marked.site)
    said = marked.refused("--cfg", "job", f"plugins.locked={locked}")
    assert f"plugins.locked={locked}" in said
    assert DIFFERENCES[difference] in said


def test_a_package_more(locked: Path, marked: Marked, install: Callable) -> None:
    install("extra-plugin", {"__init__.py": ""})
    said = marked.refused("--cfg", "job", f"plugins.locked={locked}")
    assert "the package extra-plugin 1.0 is installed and not in the lock" in said
    blocked = ("--cfg", "job", f"plugins.locked={locked}", "plugins.block=[extra-*]")
    assert marked.run("train", *blocked).returncode == 0, "what is not loaded may be there"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 1, "plugins": {}}'])
def test_a_lock_that_is_none(marked: Marked, tmp_path: Path, text: str | None) -> None:
    lock = tmp_path / "no.lock"
    if text is not None:
        lock.write_text(text)
    assert f"plugins.locked={lock}" in marked.refused("--cfg", "job", f"plugins.locked={lock}")


@pytest.mark.slow
def test_ranks_hold_to_it(
    atom: Callable,
    warm: Any,
    environment: dict[str, str],
    marked: Marked,
    locked: Path,
    tmp_path: Path,
    port: int,
) -> None:
    """They read it in run.yaml, load what the run uses and nothing else, and check that."""
    place = tmp_path / "run"
    small = ("tokenizer=bytes", "training.steps=1", "training.seq_len=64", "device=cpu")
    trust = (f"plugins.locked={locked}", "plugins.block=[nothing]")
    # No fork of this process: it has torch's threads where another test has computed, and a rank
    # that inherits their pool waits for it for ever.
    result = atom(
        *("train", *small, *trust, f"run.dir={place}"),
        cwd=marked.folder,
        timeout=300,
        **marked.environment(),
    )
    assert result.returncode == 0, result.stderr
    section = yaml.safe_load((place / "run.yaml").read_text())["plugins"]
    assert section["locked"] == str(locked)
    assert section["block"] == ["nothing"]
    assert "atom-llama" in section["used"]
    assert "marked-plugin" not in section["used"]

    def rank() -> tuple[int, str]:
        marked.mark.unlink(missing_ok=True)
        process = warm.start(
            ["-m", "atom.launch.rank", str(place), str(tmp_path)],
            environment=environment
            | marked.environment()
            | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
            | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)},
            cwd=tmp_path,
        )
        process.communicate(300)
        return process.wait(), (place / "logs/rank_0.jsonl").read_text()

    code, log = rank()
    assert code == 0, log
    assert not marked.mark.exists(), "the run does not use it"
    content = json.loads(locked.read_text())
    content["plugins"]["atom-llama"]["files"]["atom_llama/build.py"] = "0" * 64
    locked.write_text(json.dumps(content))
    code, log = rank()
    assert code != 0
    assert "the file atom_llama/build.py of the package atom-llama" in log
