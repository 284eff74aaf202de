"""What ``plugins.locked`` sees: links, bytecode, namespaces, entry points, what extends Hydra."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.testing.installing import describe

Command = Callable[..., subprocess.CompletedProcess[str]]

SOUND = "from atom.plugin import hookimpl\n"
HOSTILE = "import os, pathlib\npathlib.Path(os.environ['MARK']).touch()\n"


class Checkout:
    """A plugin that is installed editable, below a namespace, with a part for Hydra."""

    def __init__(self, folder: Path, command: Command) -> None:
        self.site, self.root = folder / "site", folder / "checkout"
        self.mark, self.lock = folder / "mark", folder / "plugins.lock"
        self.code = self.root / "space" / "net"
        self.code.mkdir(parents=True)
        (self.code / "__init__.py").write_text("from space.net import more\n" + SOUND)
        (self.code / "more.py").write_text("")
        self.described = describe(self.site, "net", module="space.net")
        self.described.joinpath("RECORD").write_text(
            "".join(
                f"{self.described.name}/{name},,\n" for name in ("METADATA", "entry_points.txt")
            )
        )
        content = {"url": self.root.as_uri(), "dir_info": {"editable": True}}
        self.described.joinpath("direct_url.json").write_text(json.dumps(content))
        self._command, self._folder = command, folder

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._command(
            *arguments,
            cwd=self._folder,
            PYTHONPATH=f"{self.site}:{self.root}",
            MARK=str(self.mark),
            ATOM_PLUGINS_ALLOW="net",
        )

    def train(self) -> subprocess.CompletedProcess[str]:
        return self.run("train", "--cfg", "job", f"plugins.locked={self.lock}")


@pytest.fixture
def checkout(tmp_path: Path, forked: Command) -> Checkout:
    made = Checkout(tmp_path, forked)
    done = made.run("plugins", "lock", str(made.lock))
    assert done.returncode == 0, done.stderr
    return made


def edits_by_a_linked_folder(checkout: Checkout) -> str:
    outside = checkout.root.parent / "outside"
    outside.mkdir()
    (outside / "__init__.py").write_text(HOSTILE)
    (checkout.code / "more").symlink_to(outside)
    return "a file that is not in the lock: space/net/more/__init__.py"


def links_to_itself(checkout: Checkout) -> str:
    (checkout.code / "again").symlink_to(".")
    return "is a link to a folder that it is in"


def is_a_pipe(checkout: Checkout) -> str:
    os.mkfifo(checkout.code / "more.txt")
    return "more.txt is no regular file"


def adds_to_the_namespace(checkout: Checkout) -> str:
    (checkout.root / "space/other.py").write_text(HOSTILE)
    return "a file that is not in the lock: space/other.py"


def adds_what_hydra_imports(checkout: Checkout) -> str:
    (checkout.root / "hydra_plugins/net").mkdir(parents=True)
    (checkout.root / "hydra_plugins/net/__init__.py").write_text(HOSTILE)
    return "a file that is not in the lock: hydra_plugins/net/__init__.py"


def names_another_module(checkout: Checkout) -> str:
    points = checkout.described / "entry_points.txt"
    points.write_text("[atom]\nspace.net = space.net.more\n")
    return "has an entry point that is not in the lock: space.net = space.net.more"


def replaces_a_file_by_a_link(checkout: Checkout) -> str:
    (checkout.root.parent / "outside.py").write_text(HOSTILE)
    (checkout.code / "more.py").unlink()
    (checkout.code / "more.py").symlink_to(checkout.root.parent / "outside.py")
    return "the file space/net/more.py of the package net 1.0 has changed"


def leaves_bytecode_alone(checkout: Checkout) -> str:
    (checkout.code / "more.pyc").write_bytes(b"")
    return "a file that is not in the lock: space/net/more.pyc"


@pytest.mark.parametrize(
    "attempt",
    [
        edits_by_a_linked_folder,
        links_to_itself,
        is_a_pipe,
        adds_to_the_namespace,
        adds_what_hydra_imports,
        names_another_module,
        replaces_a_file_by_a_link,
        leaves_bytecode_alone,
    ],
    ids=lambda attempt: attempt.__name__,
)
def test_what_differs_is_refused(attempt: Callable[[Checkout], str], checkout: Checkout) -> None:
    says = attempt(checkout)
    done = checkout.train()
    assert done.returncode == 2, done.stdout
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not checkout.mark.exists()


@pytest.mark.parametrize("how", ["two numbers match", "unchecked"])
def test_bytecode_beside_the_source_is_not_run(how: str, checkout: Checkout) -> None:
    source = checkout.code / "more.py"
    hostile = checkout.root.parent / "hostile.py"
    hostile.write_text(HOSTILE)
    if how == "unchecked":
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    else:
        mode = py_compile.PycInvalidationMode.TIMESTAMP
        source.write_text("#" * len(HOSTILE.encode()))
        assert checkout.run("plugins", "lock", str(checkout.lock)).returncode == 0
        os.utime(hostile, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    cache = importlib.util.cache_from_source(str(source))
    py_compile.compile(str(hostile), cache, invalidation_mode=mode, doraise=True)
    checkout.train()
    assert not checkout.mark.exists()
    checkout.run("plugins")
    assert checkout.mark.exists(), "where there is no lock, Python runs it"


@pytest.mark.parametrize("how", ["pipe", "endless"])
def test_a_lock_that_is_no_file(how: str, checkout: Checkout) -> None:
    if how == "pipe":
        checkout.lock.unlink()
        os.mkfifo(checkout.lock)
    else:
        checkout.lock = Path("/dev/zero")
    done = checkout.train()
    assert done.returncode == 2
    assert "the lock cannot be read" in done.stderr


def test_what_has_not_changed_is_loaded(checkout: Checkout) -> None:
    """Linked folders of one's own are followed, and stay as they are."""
    (checkout.root.parent / "data").mkdir()
    (checkout.root.parent / "data/table.json").write_text("{}")
    (checkout.code / "data").symlink_to(checkout.root.parent / "data")
    assert checkout.run("plugins", "lock", str(checkout.lock)).returncode == 0
    entry = json.loads(checkout.lock.read_text())["plugins"]["net"]
    assert entry["entry_points"] == {"space.net": "space.net"}
    assert "space/net/data/table.json" in entry["files"]
    done = checkout.train()
    assert "lock" not in done.stderr
    (checkout.root.parent / "data/table.json").write_text("[]")
    assert "the file space/net/data/table.json of the package net" in checkout.train().stderr
