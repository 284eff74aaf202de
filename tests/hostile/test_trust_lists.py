"""Lists of plugins that may be loaded hold in every command, whatever a stranger's files say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from atom.registry.trust import Trust
from atom.testing.installing import describe

Command = Callable[..., subprocess.CompletedProcess[str]]

PLUGIN = """
import os, pathlib
pathlib.Path(os.environ["MARK"]).touch()
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    yield Architecture(name="marked_net", summary="a net", build="marked.build:net")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with one that leaves a trace when it is imported, ``marked``."""
    site = tmp_path / "site"
    package(site, "marked", {"marked/__init__.py": PLUGIN, "marked/sub.py": PLUGIN})
    return site


def package(site: Path, name: str, files: dict[str, str], module: str | None = None) -> None:
    """Install a package, with a record of its files."""
    described = describe(site, name, module=module)
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (described / "RECORD").write_text("".join(f"{path},,\n" for path in files))


# ------------------------------------------------------------------ a run folder of a stranger's


@pytest.fixture(scope="module")
def stranger(
    atom: Command, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run whose ``run.yaml`` has come to need the plugin, and allows it."""
    folder = tmp_path_factory.mktemp("stranger")
    done = atom("train", *small, "training.steps=1", f"run.dir={folder}/run", cwd=folder)
    assert done.returncode == 0, done.stderr
    run = yaml.safe_load((folder / "run/run.yaml").read_text())
    run["architecture"] = {"name": "marked_net"}
    run["plugins"] |= {"allow": ["*"], "used": [*run["plugins"]["used"], "marked"]}
    (folder / "run/run.yaml").write_text(yaml.safe_dump(run))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "export", "train"])
@pytest.mark.parametrize("place", ["variable", "file", "allowed"])
def test_a_stranger_s_run_loads_nothing_that_the_user_blocks(
    command: str, place: str, stranger: Path, site: Path, atom: Command, tmp_path: Path
) -> None:
    mark, settings = tmp_path / "mark", tmp_path / "settings"
    environment = {"PYTHONPATH": str(site), "MARK": str(mark), "XDG_CONFIG_HOME": str(settings)}
    if place == "variable":
        environment["ATOM_PLUGINS_BLOCK"] = "mark*"
    elif place == "allowed":
        environment["ATOM_PLUGINS_ALLOW"] = "atom-*"
    else:
        (settings / "atom").mkdir(parents=True)
        (settings / "atom/plugins.yaml").write_text("block: [marked]\n")
    arguments = {
        "generate": ("generate", str(stranger), "hello"),
        "export": ("export", str(stranger), "--to", "hf", "--out", str(tmp_path / "out")),
        "train": ("train", "architecture.name=marked_net", f"run.dir={tmp_path / 'out'}"),
    }[command]
    done = atom(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 2, done.stderr
    assert "its plugin marked is blocked" in done.stderr or "1 plugin is blocked" in done.stderr
    assert "marked (" in done.stderr or "marked is" in done.stderr
    assert not mark.exists(), "the plugin was imported"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_is_loaded_where_the_user_has_no_list(
    stranger: Path, site: Path, atom: Command, tmp_path: Path
) -> None:
    """What the test above rests on."""
    mark = tmp_path / "mark"
    done = atom("generate", str(stranger), "hello", PYTHONPATH=str(site), MARK=str(mark))
    assert done.returncode == 2, done.stderr
    assert "marked_net of marked 1.0 cannot be used" in done.stderr
    assert mark.exists()


def test_lists_of_a_run_and_of_the_user_must_both_agree(tmp_path: Path) -> None:
    from atom.recipe.sections import Plugins

    section = Plugins(allow=["a", "b"], block=["c"], used=["a", "b", "c", "d"])
    environment = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "ATOM_PLUGINS_ALLOW": "a,c,d",
        "ATOM_PLUGINS_BLOCK": "e",
    }
    trust = Trust.of_run(section, environment)
    assert [name for name in "abcde" if trust.refusal(name) is None] == ["a"]


@pytest.mark.parametrize("value", ["", ",", " , ,"])
@pytest.mark.parametrize("variable", ["ATOM_PLUGINS_ALLOW", "ATOM_PLUGINS_BLOCK"])
@pytest.mark.parametrize("command", [("plugins",), ("train", "--cfg", "job"), ("kernels",)])
def test_a_variable_without_a_pattern_stops_the_command(
    command: tuple[str, ...], variable: str, value: str, site: Path, forked: Command, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    extra = {"PYTHONPATH": str(site), "MARK": str(mark), variable: value}
    done = forked(*command, cwd=tmp_path, **extra)
    assert done.returncode == 2, done.stdout
    assert f"{variable}={value} holds no pattern" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not mark.exists()


# ------------------------------------------------------------------ entry points


def names_the_module(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="marked")


def names_a_module_below(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="marked.sub")


def claims_the_file(site: Path) -> None:
    """Its own record names the other's file."""
    package(site, "friend", {}, module="marked.sub")
    (site / "friend-1.0.dist-info/RECORD").write_text("marked/__init__.py,,\nmarked/sub.py,,\n")


def claims_to_be_editable(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="marked")
    content = {"url": "file:///", "dir_info": {"editable": True}}
    (site / "friend-1.0.dist-info/direct_url.json").write_text(json.dumps(content))


def adds_a_module_below(site: Path) -> None:
    """To import what is its own runs what is not."""
    package(site, "friend", {"marked/friend.py": ""}, module="marked.friend")


def has_no_record(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="marked")
    (site / "friend-1.0.dist-info/RECORD").unlink()


def is_of_no_package(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="beside")
    (site / "beside.py").write_text(PLUGIN)


def is_python_s_own(site: Path) -> None:
    package(site, "friend", {"friend.py": ""}, module="antigravity")


@pytest.mark.parametrize(
    "attempt",
    [
        names_the_module,
        names_a_module_below,
        claims_the_file,
        claims_to_be_editable,
        adds_a_module_below,
        has_no_record,
        is_of_no_package,
        is_python_s_own,
    ],
    ids=lambda attempt: attempt.__name__,
)
def test_an_allowed_package_brings_in_no_other_s_module(
    attempt: Callable[[Path], None], site: Path, forked: Command, tmp_path: Path
) -> None:
    attempt(site)
    mark = tmp_path / "mark"
    extra = {"PYTHONPATH": str(site), "MARK": str(mark), "ATOM_PLUGINS_BLOCK": "marked"}
    done = forked("plugins", "--json", cwd=tmp_path, **extra)
    assert done.returncode == 0, done.stderr
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    assert rows["friend"]["status"] == "blocked", rows["friend"]
    assert "its entry point" in rows["friend"]["reason"]
    assert not mark.exists()


def installed_with_a_record(site: Path) -> None:
    package(site, "friend", {"friend/__init__.py": PLUGIN}, module="friend")


def without_a_record(site: Path) -> None:
    installed_with_a_record(site)
    (site / "friend-1.0.dist-info/RECORD").unlink()


def below_a_namespace(site: Path) -> None:
    package(site, "friend", {"space/friend/plugin.py": PLUGIN}, module="space.friend.plugin")


def editable(site: Path) -> None:
    package(site, "friend", {}, module="friend.plugin")
    source = site.parent / "checkout" / "src"
    (source / "friend").mkdir(parents=True)
    (source / "friend/__init__.py").touch()
    (source / "friend/plugin.py").write_text(PLUGIN)
    (source.parent / "link").symlink_to("src")
    content = {"url": f"file://{source.parent}", "dir_info": {"editable": True}}
    (site / "friend-1.0.dist-info/direct_url.json").write_text(json.dumps(content))


def in_another_folder_of_the_path(site: Path) -> None:
    """PYTHONPATH, which is the user's own, names another copy."""
    package(site, "friend", {"friend.py": ""}, module="friend")
    (site / "friend.py").unlink()
    (site.parent / "checkout/link").mkdir(parents=True)
    (site.parent / "checkout/link/friend.py").write_text(PLUGIN)


@pytest.mark.parametrize(
    "way",
    [
        installed_with_a_record,
        without_a_record,
        below_a_namespace,
        editable,
        in_another_folder_of_the_path,
    ],
    ids=lambda way: way.__name__,
)
def test_a_package_s_own_module_is_loaded(
    way: Callable[[Path], None], site: Path, forked: Command, tmp_path: Path
) -> None:
    way(site)
    mark = tmp_path / "mark"
    extra = {
        "PYTHONPATH": f"{site}:{tmp_path / 'checkout/link'}",
        "MARK": str(mark),
        "ATOM_PLUGINS_BLOCK": "marked",
    }
    done = forked("plugins", "--json", cwd=tmp_path, **extra)
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    assert rows["friend"]["status"] == "ok", rows["friend"]
    assert mark.exists()
