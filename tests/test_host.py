"""Plugins that are broken, each in its own way, break nothing but themselves.

They are installed as an installer would: code and metadata in a folder that Python searches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from broken_plugins import BROKEN, NET, Site

from atom.cli import main
from atom.errors import UserError
from atom.registry.host import Host


@pytest.fixture(scope="module")
def broken(forked: Callable, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """All broken plugins at once."""
    site = Site(tmp_path_factory.mktemp("broken"), forked)
    for name, plugin in BROKEN.items():
        option = {f"{name}/conf/architecture/{name}.yaml": f"name: {name}_net\n"}
        code = {f"{name}/{path}": text for path, text in plugin.files.items()}
        site.install(
            name.replace("_", "-"),
            {f"{name}/__init__.py": plugin.code} | code | option,
            entry_point=plugin.entry_point,
            metadata=plugin.metadata,
        )
    return site


@pytest.fixture(scope="module")
def rows(broken: Site) -> dict[str, dict]:
    """The rows of the broken plugins' packages, and of one that is not broken."""
    listed = broken.plugins()
    names = {name.replace("_", "-") for name in BROKEN} | {"atom-llama"}
    found = {row["package"]: row for row in listed if row["package"] in names}
    assert len(listed) - len(BROKEN) > 15, "the others have gone"
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_listed_with_its_reason(name: str, rows: dict[str, dict]) -> None:
    package = name.replace("_", "-")
    assert rows[package] == {
        "kind": None,
        "name": name,
        "package": package,
        "version": "1.0",
        "status": "broken",
        "reason": BROKEN[name].reason,
        "summary": None,
    }


def test_the_others_go_on(rows: dict[str, dict], broken: Site, tmp_path: Path) -> None:
    assert rows["atom-llama"]["status"] == "ok"
    result = broken.atom("train", "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["architecture"]["name"] == "llama3"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Site], Path]:
    """Run the command in this process, in an empty folder, with the plugins of a site."""

    def enter(site: Site) -> Path:
        monkeypatch.syspath_prepend(str(site.folder))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_needs_it_stops_with_the_reason(
    name: str, broken: Site, beside: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    work = beside(broken)
    package = name.replace("_", "-")
    # An option of the broken package; without a folder of its own, it has none.
    word = f"architecture={name}" if name != "no_package" else "architecture.name=no-package:net"
    assert main(["train", word]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("atom: architecture.name=")
    assert said.endswith(f": its plugin {package} is broken: {BROKEN[name].reason}\n")
    assert not list(work.iterdir())


def test_the_package_named_gives_its_reason(broken: Site, beside: Callable) -> None:
    beside(broken)
    host = Host.load()
    for name, plugin in BROKEN.items():
        with pytest.raises(UserError) as error:
            host.find("architecture", f"{name}:some_net", key="architecture.name")
        assert error.value.told.endswith(f" is broken: {plugin.reason}")


def test_a_name_that_nobody_has_lists_the_broken(
    broken: Site, beside: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them may have it; three are told, for a sentence has an end."""
    beside(broken)
    assert main(["train", "architecture.name=llama33"]) == 2
    said = capsys.readouterr().err
    assert "there is no architecture llama33; did you mean llama3 (atom-llama)?" in said
    assert f"{len(BROKEN)} plugins are broken: an-attribute (its entry point must" in said
    assert f"{len(BROKEN) - 3} more (see `atom plugins`)" in said
    assert said.count("\n") == 1


# ---------------------------------------------------------------------------- names


@pytest.fixture
def site(forked: Callable, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", forked)


def offer(site: Site, name: str, component: str, **keywords: str) -> None:
    package = name.replace("-", "_")
    code = NET.format(name=component, package=package)
    site.install(name, {f"{package}/__init__.py": code}, **keywords)


def test_two_packages_with_one_name(
    site: Site, beside: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "one-net", "shared_net")
    offer(site, "other-net", "shared_net", version="2.0")
    beside(site)
    assert main(["train", "architecture.name=shared_net"]) == 2
    assert capsys.readouterr().err == (
        "atom: architecture.name=shared_net (command line): architecture shared_net is offered by "
        "one-net 1.0 and other-net 2.0; choose one with `name: one_net:shared_net` or "
        "`name: other_net:shared_net`\n"
    )
    host = Host.load()
    both = [c for c in host.components if c.name == "shared_net"]
    assert [c.plugin.package for c in both] == ["one-net", "other-net"]
    for name in ("other_net:shared_net", "other-net:shared_net", "Other.Net:shared_net"):
        assert host.find("architecture", name) is both[1]
    assert host.find("architecture", both[0].address) is both[0]
    # The one chosen is taken, and has none of the parameters of llama3_tiny.
    assert main(["train", "architecture.name=other-net:shared_net"]) == 2
    assert "shared_net has no parameters" in capsys.readouterr().err


def test_a_namespace_package_of_several_distributions(site: Site) -> None:
    """The outermost regular package is the plugin's own: the namespace has no code."""
    for part in ("first", "second"):
        site.install(
            f"nets-{part}",
            {
                f"nets/{part}/__init__.py": NET.format(name=f"{part}_net", package=f"nets.{part}"),
                f"nets/{part}/conf/architecture/{part}_option.yaml": f"name: {part}_net\n",
            },
            entry_point=f"nets.{part}",
        )
    site.install("nets-third", {"nets/third.py": "raise ValueError\n"}, entry_point="nets.third")
    listed = {row["package"]: row for row in site.plugins() if row["package"].startswith("nets")}
    assert listed["nets-first"]["name"] == "first_net"
    assert listed["nets-second"]["name"] == "second_net"
    assert listed["nets-third"]["reason"] == "cannot be imported: ValueError (third.py:1)"
    code = (
        "import atom.registry.host; print(*(f'{p.package}={p.import_package}={p.source}={p.conf}'"
    )
    code += " for p in atom.registry.host.Host.load().plugins if 'nets' in p.package), sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site.folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    nets = site.folder / "nets"
    assert result.stdout.splitlines() == [
        f"nets-first=nets.first={nets / 'first'}={nets / 'first' / 'conf'}",
        f"nets-second=nets.second={nets / 'second'}={nets / 'second' / 'conf'}",
        f"nets-third=nets.third={nets / 'third.py'}=None",
    ]


def test_a_distribution_twice_on_the_path(site: Site, forked: Callable, tmp_path: Path) -> None:
    """As an editable install beside an older copy: the first is what Python imports."""
    older = Site(tmp_path / "older", forked)
    offer(site, "twice-net", "new_net", version="2.0")
    offer(older, "Twice.Net", "old_net", version="1.0")
    (older.folder / "Twice.Net").rename(older.folder / "twice_net")
    path = f"{site.folder}:{site.folder}:{older.folder}"
    listed = [row for row in site.plugins(PYTHONPATH=path) if "net" in row["package"].lower()]
    assert [(row["name"], row["package"], row["version"]) for row in listed] == [
        ("new_net", "twice-net", "2.0")
    ]


def test_two_entry_points_of_one_package(site: Site) -> None:
    """One may be broken, and the other not."""
    site.install(
        "pair",
        {"pair/__init__.py": "", "pair/good.py": NET.format(name="good_net", package="pair")},
        entry_point="pair.good\nbad = pair.bad",
    )
    listed = [row for row in site.plugins() if row["package"] == "pair"]
    assert [(row["kind"], row["name"], row["status"]) for row in listed] == [
        ("architecture", "good_net", "ok"),
        (None, "bad", "broken"),
    ]


def test_what_a_plugin_prints_is_not_the_answer(site: Site) -> None:
    code = "print('hello from a plugin')\n" + NET.format(name="loud_net", package="loud")
    site.install("loud", {"loud/__init__.py": code})
    result = site.atom("plugins", "--json", cwd=site.folder)
    assert any(row["name"] == "loud_net" for row in json.loads(result.stdout))
    assert result.stderr == "hello from a plugin\n"


def test_metadata_that_cannot_be_read(site: Site) -> None:
    offer(site, "fine", "fine_net")
    (site.folder / "torn-1.0.dist-info").mkdir()
    (site.folder / "torn-1.0.dist-info" / "entry_points.txt").write_bytes(b"[atom]\n\xff\xfe = =")
    (site.folder / "empty-1.0.dist-info").mkdir()
    (site.folder / "empty-1.0.dist-info" / "entry_points.txt").write_text("[atom]\nx = fine\n")
    listed = site.plugins()
    assert any(row["name"] == "fine_net" for row in listed)
    assert not any(row["package"] == "torn" for row in listed)
