"""``lock.json``: what a run ran with, told without importing it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

import atom as atom_package
from atom.io import files
from atom.registry.host import Host
from atom.registry.installed import Plugin
from atom.run_dir import provenance
from atom.run_dir.environment import distributions
from atom.run_dir.repositories import Repository, repositories
from atom.run_dir.variables import numerics

NET = """
from atom.plugin import Architecture, hookimpl

@hookimpl
def atom_architectures():
    yield Architecture(name="net", summary="a net", build="locked_net.build:net")
"""


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run git in the current folder, a new one, as somebody without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def run(*arguments: str) -> str:
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", *settings, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return run


def test_contents(host: Host) -> None:
    content = provenance.lock(host, seed=7, device="cuda")
    assert list(content) == [
        *("python", "platform", "atom", "torch", "torchtitan", "packages", "code"),
        "plugins",
        *("components", "kernels", "repositories", "environment", "variables"),
        *("seed", "device", "created"),
    ]
    assert content["python"] == platform.python_version()
    assert content["platform"] == platform.platform()
    assert content["atom"] == atom_package.__version__
    assert content["torch"] == metadata.version("torch")
    assert content["torchtitan"] == metadata.version("torchtitan")
    assert content["packages"].keys() == set(provenance.PACKAGES)
    assert content["packages"]["hydra-core"] == metadata.version("hydra-core")
    assert (content["seed"], content["device"]) == (7, "cuda")
    created = datetime.fromisoformat(content["created"])
    assert timedelta() <= datetime.now(UTC) - created < timedelta(seconds=60)
    assert [plugin["package"] for plugin in content["plugins"]] == [
        plugin.package for plugin in host.plugins
    ]
    by_package = {plugin["package"]: plugin for plugin in content["plugins"]}
    assert by_package["atom-llama"].keys() == {
        *("package", "version", "module", "sha256", "licence"),
    }
    assert by_package["atom-llama"]["licence"] == "Apache-2.0"
    assert by_package["atom-llama"]["version"] == metadata.version("atom-llama")
    assert by_package["atom-llama"]["module"] == "atom_llama"
    digests = [plugin["sha256"] for plugin in content["plugins"]]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)


def test_a_package_that_is_not_installed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "torchtitan", "no-such-package"))
    content = provenance.lock(host, seed=None, device="cpu")
    assert content["packages"]["no-such-package"] is None
    assert content["seed"] is None


def test_broken_plugins_are_in_it(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are installed, and may be why something else came out."""
    monkeypatch.syspath_prepend(str(install("faulty", {"__init__.py": "raise RuntimeError\n"})))
    entries = provenance.lock(Host.load(), seed=0, device="cpu")["plugins"]
    faulty = next(entry for entry in entries if entry["package"] == "faulty")
    assert faulty["version"] == "1.0"
    assert re.fullmatch("[0-9a-f]{64}", faulty["sha256"])


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import json, sys\n"
        "from atom.run_dir import provenance\n"
        "from atom.registry.host import Host\n"
        "content = provenance.lock(Host.load(), seed=0, device='cpu')\n"
        "assert content['torch'] and content['plugins']\n"
        "sys.exit(str({'torch', 'torchtitan', 'hydra'} & set(sys.modules) or ''))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == ""


# ---------------------------------------------------------------------------- digests


@pytest.fixture
def net(install: Callable, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    files = {"__init__.py": NET, "build.py": "", "conf/architecture/net.yaml": "name: net\n"}
    monkeypatch.syspath_prepend(str(install("locked-net", files)))
    # What another test has imported from its own folder.
    monkeypatch.delitem(sys.modules, "locked_net", raising=False)
    return next(plugin for plugin in Host.load().plugins if plugin.package == "locked-net")


CHANGES = {
    "a file's content": lambda folder: (folder / "build.py").write_text("x = 1\n"),
    "a config": lambda folder: (folder / "conf/architecture/net.yaml").write_text("name: net"),
    "a new file": lambda folder: (folder / "new.py").write_text(""),
    "a new name": lambda folder: (folder / "build.py").rename(folder / "built.py"),
    "a file less": lambda folder: (folder / "build.py").unlink(),
    "a link": lambda folder: (folder / "link.py").symlink_to("build.py"),
    "data": lambda folder: (folder / "merges.bin").write_bytes(b"\x00\xff"),
    "a name of bytes": lambda folder: (folder / os.fsdecode(b"\xff.txt")).write_text(""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_digest_changes_with(change: Callable[[Path], object], net: Plugin) -> None:
    assert net.source is not None
    before = provenance.sha256(net)
    change(net.source)
    assert provenance.sha256(net) != before


def test_digest_does_not_change_with_what_python_makes(net: Plugin) -> None:
    assert net.source is not None
    before = provenance.sha256(net)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(net.source)], check=True)
    assert list(net.source.glob("__pycache__/*.pyc"))
    (net.source / "kernel.so").write_bytes(b"\x7fELF")
    (net.source / "empty").mkdir()
    (net.source / "dangling").symlink_to("nowhere")
    os.utime(net.source / "build.py", (0, 0))
    assert provenance.sha256(net) == before


def test_digest_is_of_the_files_and_not_of_their_place(net: Plugin, tmp_path: Path) -> None:
    assert net.source is not None
    before = provenance.sha256(net)
    moved = net.source.rename(tmp_path / "elsewhere")
    assert provenance.sha256(replace(net, source=moved)) == before


def test_digest_of_one_module(net: Plugin, tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("x = 1\n")
    (tmp_path / "beside.py").write_text("y = 1\n")
    plugin = replace(net, source=module)
    before = provenance.sha256(plugin)
    (tmp_path / "beside.py").write_text("y = 2\n")
    assert provenance.sha256(plugin) == before
    module.write_text("x = 2\n")
    assert provenance.sha256(plugin) != before


def test_no_digest_of_what_is_not_there(net: Plugin) -> None:
    assert provenance.sha256(replace(net, source=None)) is None


# ---------------------------------------------------------------------------- git


def of(*folders: str) -> list[Repository]:
    return repositories({folder: Path(folder) for folder in folders})


def test_code_in_repositories(git: Callable[..., str], tmp_path: Path) -> None:
    """The commit is that of the code, and a patch makes it the code that ran."""
    for name in ("code", "other", "beside"):
        Path(name).mkdir()
        Path(name, "one.py").write_text("x = 1\n")
    assert of("code") == [], "no repository"
    git("init", "-q")
    assert of("code") == [], "no commit"
    git("add", "code", "beside")
    git("commit", "-q", "-m", "first")
    git("remote", "add", "origin", "https://name:secret@example.org/code.git")
    clean = Repository(
        ("code", "beside"),
        "https://(redacted)@example.org/code.git",
        git("rev-parse", "HEAD"),
        False,
    )
    assert of("code", "other", "beside") == [clean], "the other one is not tracked"
    Path("elsewhere").write_text("")
    assert of("code", "beside") == [clean], "what is beside the code is no code"
    index = Path(".git/index").read_bytes()
    Path("code/one.py").write_text("x = 2\n")
    Path("code/new.py").write_text("y = 1\n")
    [dirty] = of("code")
    assert dirty.dirty
    assert dirty.to_json()["patch"] == "patches/code.patch"
    assert Path(".git/index").read_bytes() == index
    # Only looked at: nothing is waiting to be written.
    assert not list(Path(".git").glob("*.lock"))
    git("clone", "-q", ".", "again")
    (tmp_path / "patch").write_bytes(dirty.patch or b"")
    git("-C", "again", "apply", str(tmp_path / "patch"))
    assert {path.name: path.read_text() for path in Path("again/code").iterdir()} == {
        "one.py": "x = 2\n",
        "new.py": "y = 1\n",
    }
    assert not repositories({"code": Path("code")}, patches=False)[0].patch
    Path("code/new.py").write_text(f"token = 'hf_{'a' * 30}'\n")
    assert of("code")[0].to_json()["patch_left_out"] == "it holds what looks like a secret"


def test_repositories_that_cannot_be_read(
    git: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    git("init", "-q")
    Path("code").mkdir()
    Path("code/one.py").write_text("")
    git("add", "code")
    git("commit", "-q", "-m", "first")
    head = Path(".git/HEAD").read_text()
    Path(".git/HEAD").write_text("nonsense\n")
    assert of("code") == []
    Path(".git/HEAD").write_text(head)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert of("code") == []


def test_digests_of_distributions(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of the wheel's files: neither installer nor bytecode changes them."""
    found = distributions()
    assert found["torch"]["version"] == metadata.version("torch")
    assert re.fullmatch("[0-9a-f]{64}", found["torch"]["sha256"])
    assert found["atom-train"]["sha256"] is None, "editable: see the digests of code"
    site = install("net", {"__init__.py": ""})
    monkeypatch.syspath_prepend(str(site))
    info = next(site.glob("*.dist-info"))
    digests = set()
    for record in (
        "net/__init__.py,sha256=a,1\nnet.dist-info/METADATA,sha256=b,1\n",
        "net.dist-info/METADATA,sha256=b,1\nnet/__init__.py,sha256=a,1\n../bin/net,sha256=c,1\n"
        "net/__pycache__/__init__.cpython.pyc,sha256=d,1\nnet.dist-info/INSTALLER,sha256=e,1\n",
        "net/__init__.py,sha256=x,1\nnet.dist-info/METADATA,sha256=b,1\n",
    ):
        (info / "RECORD").write_text(record)
        digests.add(distributions()["net"]["sha256"])
    assert len(digests) == 2


def test_variables_that_change_numbers() -> None:
    found = numerics(
        {"NCCL_ALGO": "Ring", "HOME": "/root", "TORCH_TOKEN": "abc", "TRITON_CACHE_DIR": "/tmp"}
    )
    assert found == {"NCCL_ALGO": "Ring", "TORCH_TOKEN": "(redacted)"}


# ---------------------------------------------------------------------------- the file


def test_written_whole_or_not_at_all(host: Host, tmp_path: Path) -> None:
    place = tmp_path / "lock.json"
    content = provenance.lock(host, seed=0, device="cpu")
    files.write_json(place, content)
    assert json.loads(place.read_text()) == content
    assert place.read_text().endswith("}\n")
    with pytest.raises(TypeError):
        files.write_json(place, {"not": object()})
    assert json.loads(place.read_text()) == content
    files.write_json(place, {"new": True})
    assert json.loads(place.read_text()) == {"new": True}
    assert list(tmp_path.iterdir()) == [place]
