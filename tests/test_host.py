"""Plugins that are broken, each in its own way, break nothing but themselves.

They are installed as an installer would: code and metadata in a folder that Python searches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from atom.cli import main
from atom.errors import UserError
from atom.registry.host import Host
from atom.testing.installing import describe

NET = """
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    yield Architecture(name="{name}", summary="a net", build="{package}.build:net")
"""


@dataclass(frozen=True)
class Broken:
    """The code of a plugin, and the reason that ATOM must give for not using it."""

    code: str
    reason: str
    entry_point: str | None = None
    metadata: str = ""
    files: dict[str, str] = field(default_factory=dict)


def hook(body: str, name: str = "atom_architectures", imports: str = "Architecture") -> str:
    return f"from atom.plugin import {imports}, hookimpl\n@hookimpl\ndef {name}():\n    {body}\n"


def net(name: str, **fields: str) -> str:
    written = {"summary": "a net", "build": "a.b:c"} | fields
    return f"Architecture(name={name!r}, {', '.join(f'{k}={v!r}' for k, v in written.items())})"


BROKEN = {
    "raises": Broken(
        "raise RuntimeError('no\\nlicence')\n",
        "cannot be imported: RuntimeError: no licence (raises/__init__.py:1)",
    ),
    "raises_below": Broken(
        "from raises_below import inner\n",
        "cannot be imported: ZeroDivisionError: division by zero (raises_below/inner.py:2)",
        files={"inner.py": "import os\n1 / 0\n"},
    ),
    "exits": Broken(
        "import sys\nsys.exit(0)\n",
        "cannot be imported: SystemExit: 0 (exits/__init__.py:2)",
    ),
    "raises_in_words": Broken(
        "class Sly(Exception):\n    def __str__(self):\n        raise KeyError('x')\nraise Sly\n",
        "cannot be imported: raises_in_words.Sly: <exception str() failed> "
        "(raises_in_words/__init__.py:4)",
    ),
    "not_python": Broken(
        "def atom_architectures(:\n",
        "cannot be imported: SyntaxError: invalid syntax (__init__.py, line 1)",
    ),
    "needs_a_package": Broken(
        "import no_such_thing\n",
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' "
        "(needs_a_package/__init__.py:1)",
    ),
    "needs_an_extra": Broken(
        "import no_such_thing\n",
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' "
        "(needs_an_extra/__init__.py:1); install it: pip install 'needs-an-extra[things]'",
        metadata="Requires-Dist: no-such-thing>=1; extra == 'things'\n",
    ),
    "no_module": Broken(
        "",
        "cannot be imported: ModuleNotFoundError: No module named 'no_module.plugin'",
        entry_point="no_module.plugin",
    ),
    "no_package": Broken(
        "",
        "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'",
        entry_point="nowhere_at_all",
    ),
    "an_attribute": Broken(
        "plugin = object()\n",
        "its entry point must name a module, not 'an_attribute:plugin'",
        entry_point="an_attribute:plugin",
    ),
    "unknown_hook": Broken(
        hook(f"yield {net('x')}", "atom_architecture"),
        "there is no hook atom_architecture; did you mean atom_architectures or "
        "atom_launchers or atom_datasets?",
    ),
    "wrong_arguments": Broken(
        f"from atom.plugin import *\nfrom atom.plugin import hookimpl\n@hookimpl\n"
        f"def atom_architectures(config):\n    yield {net('x')}\n",
        "hookimpl definition: atom_architectures(config); "
        "Argument(s) {'config'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "not_marked": Broken(
        f"from atom.plugin import Architecture\ndef atom_architectures():\n    yield {net('x')}\n",
        "atom_architectures is not marked with @atom.plugin.hookimpl",
    ),
    "wrong_type": Broken(
        hook("yield Dataset(name='x', summary='a dataset', source='a.b:c')", imports="Dataset"),
        "atom_architectures yielded the Dataset 'x', which is no Architecture",
    ),
    "yields_a_name": Broken(
        hook("yield 'llama9'"),
        "atom_architectures yielded an object of type str, which is no Architecture",
    ),
    "returns_none": Broken(
        hook("return None"),
        "atom_architectures returned None; it must yield Architecture objects",
    ),
    "returns_one": Broken(
        hook(f"return {net('x')}"),
        "atom_architectures returned the Architecture 'x'; it must yield Architecture objects",
    ),
    "repeats_a_name": Broken(
        hook(f"yield {net('x')}\n    yield {net('x')}"),
        "atom_architectures repeats the name x",
    ),
    "raises_late": Broken(
        hook(f"yield {net('x')}\n    raise OSError('gone')"),
        "atom_architectures raised: OSError: gone (raises_late/__init__.py:5)",
    ),
    "bad_name": Broken(
        hook(f"yield {net('My Net')}"),
        "atom_architectures raised: ValueError: name 'My Net' must match [a-z0-9][a-z0-9_]* "
        "(bad_name/__init__.py:4)",
    ),
    "bad_reference": Broken(
        hook(f"yield {net('x', build='a.b.c')}"),
        "atom_architectures raised: ValueError: build of 'x' is 'a.b.c', not "
        "'package.module:attribute' (bad_reference/__init__.py:4)",
    ),
    "forgets_a_field": Broken(
        hook("yield Architecture(name='x', summary='a net')"),
        "atom_architectures raised: TypeError: Architecture.__init__() missing 1 required "
        "keyword-only argument: 'build' (forgets_a_field/__init__.py:4)",
    ),
    "of_the_future": Broken(
        "ATOM_INTERFACE = 99\n" + hook(f"yield {net('x')}"),
        "speaks interface version 99; this ATOM speaks 1: upgrade ATOM",
    ),
}


class Site:
    """A folder of installed distributions, with the command run beside it."""

    def __init__(self, folder: Path, forked: Callable) -> None:
        self.folder = folder
        self._atom = forked

    def install(
        self,
        name: str,
        files: dict[str, str],
        *,
        entry_point: str | None = None,
        version: str = "1.0",
        metadata: str = "",
    ) -> None:
        """Put a distribution there. The paths of its files are relative to the folder."""
        module, point = name.replace("-", "_"), entry_point
        described = describe(
            self.folder, name, module=point, entry_point=module, version=version, metadata=metadata
        )
        points = described / "entry_points.txt"
        points.write_text("[console_scripts]\nx = y:z\n\n" + points.read_text())
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)

    def atom(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        return self._atom(*arguments, cwd=cwd, **{"PYTHONPATH": str(self.folder)} | environment)

    def plugins(self, **environment: str) -> list[dict]:
        """Return what ``atom plugins --json`` lists."""
        result = self.atom("plugins", "--json", cwd=self.folder, **environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


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
