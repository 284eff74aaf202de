"""Files that others may have put something else in the place of."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.errors import UserError
from atom.io import files, json_data, strangers
from atom.io.files import NotAFileError, TooLargeError

SECRET = "a secret\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder, with a secret beside it."""
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text(SECRET)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def _link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "secret")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


KINDS = {"a link": _link, "a pipe": _pipe, "a folder": Path.mkdir}
OPENINGS = {
    "read": files.read_bytes,
    "append": files.appending,
    "in place": lambda path: files.opened(path, os.O_RDWR | os.O_CREAT),
    "digest": files.sha256,
    "copy from": lambda path: files.copy(path, path.with_name("copy")),
    "lines": lambda path: list(json_data.lines(path)),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("use", OPENINGS.values(), ids=OPENINGS.keys())
def test_nothing_but_a_regular_file_is_opened(place: Path, make: Callable, use: Callable) -> None:
    make(place / "x")
    with pytest.raises(NotAFileError, match="x is no regular file"):
        use(place / "x")
    assert (place.parent / "secret").read_text() == SECRET
    assert [path.name for path in place.iterdir()] == ["x"]


@pytest.mark.parametrize("use", OPENINGS.values(), ids=OPENINGS.keys())
def test_a_folder_on_the_way_is_no_link(place: Path, use: Callable) -> None:
    """With ``below``; the folder below which files are may itself be one."""
    (place / "linked").symlink_to(place.parent / "outside")
    with pytest.raises(NotAFileError):
        files.read_bytes(place / "linked" / "x", below=place)
    with pytest.raises(NotAFileError):
        files.read_bytes(place / ".." / "secret", below=place)
    (place.parent / "other").symlink_to(place)
    (place / "real").mkdir()
    files.write_text(place / "real" / "x", "{}\n")
    assert files.read_text(place.parent / "other/real/x", below=place.parent / "other") == "{}\n"
    use(place / "real" / "x")


WRITINGS = {
    "text": lambda path: files.write_text(path, "new"),
    "copy": lambda path: files.copy(path.parent.parent / "new", path),
    "given": lambda path: files.write_given(path, "new"),
}


@pytest.mark.parametrize("make", [_link, _pipe], ids=["a link", "a pipe"])
@pytest.mark.parametrize("use", WRITINGS.values(), ids=WRITINGS.keys())
def test_what_is_written_replaces_what_was_there(
    place: Path, make: Callable, use: Callable, request: pytest.FixtureRequest
) -> None:
    if "given-a pipe" in request.node.callspec.id:
        make = _link  # a pipe that the user names is written to
    (place.parent / "new").write_text("new")
    make(place / "x")
    use(place / "x")
    assert (place / "x").read_text() == "new"
    assert not (place / "x").is_symlink()
    assert (place.parent / "secret").read_text() == SECRET
    assert [path.name for path in place.iterdir()] == ["x"], "nothing unfinished is left"


def test_what_cannot_be_written_leaves_what_was_there(place: Path) -> None:
    files.write_text(place / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(place / "x", "\ud800")
    assert (place / "x").read_text() == "old"
    (place / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_text(place / "folder", "new")
    assert {path.name for path in place.iterdir()} == {"x", "folder"}


@pytest.mark.parametrize("name", ["/", "/dev/null", "/dev/stdout", ".", ".."])
def test_a_device_or_a_folder_is_not_replaced(place: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"regular file|Is a directory"):
        files.write_bytes(place / name, b"new")
    assert stat.S_ISCHR(Path("/dev/null").lstat().st_mode)


def test_a_new_file_has_the_mode_of_any_other(place: Path) -> None:
    files.write_text(place / "x", "")
    (place / "y").touch()
    assert stat.S_IMODE((place / "x").stat().st_mode) == stat.S_IMODE((place / "y").stat().st_mode)


def test_a_folder_is_no_link(place: Path) -> None:
    (place / "logs").symlink_to(place.parent / "outside")
    with pytest.raises(NotADirectoryError):
        files.make_folder(place / "logs")
    files.make_folder(place / "a/b")
    files.make_folder(place / "a/b")


def test_a_large_file_is_not_read(place: Path) -> None:
    with (place / "x").open("wb") as file:
        file.truncate(8 << 30)
    for use in (files.read_bytes, lambda path: list(json_data.lines(path))):
        with pytest.raises(TooLargeError, match="it has more than"):
            use(place / "x")
    with (place / "x").open("wb") as file:
        file.truncate(json_data.LINE + 1)
    with pytest.raises(TooLargeError, match="a line of more than 4 MiB"):
        list(json_data.lines(place / "x"))


NO_DATA = {
    "deep": b"[" * 41 + b"]" * 41,
    "very deep": b"[" * 100_000,
    "NaN": b"NaN",
    "infinite": b"[1e999]",
    "more than 64 bits": b"%d" % 2**64,
    "many digits": b"1" * 5000,
    "UTF-16": '"x"'.encode("utf-16"),
    "no UTF-8": b'"\xff"',
    "nothing": b"",
}


@pytest.mark.parametrize("data", NO_DATA.values(), ids=NO_DATA.keys())
def test_no_data(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        json_data.loads(data)


def test_data() -> None:
    deep = b"[" * 40 + b"]" * 40
    assert json_data.loads(deep) is not None
    assert json_data.loads(b'{"a": [1, -2.5, null, true, "{[{["]}') == {
        "a": [1, -2.5, None, True, "{[{["]
    }


def test_links_of_a_run_folder(place: Path) -> None:
    """Those within it are its own; of the others, and pipes, the first is named."""
    (place / "notes/run-1").mkdir(parents=True)
    (place / "notes/latest").symlink_to("run-1")
    (place.parent / "by-name").symlink_to(place)
    strangers.check(place.parent / "by-name")
    (place / "notes/run-1/x").symlink_to("../../../secret")
    with pytest.raises(UserError, match=r"a link that leads out of it \(notes/run-1/x\)"):
        strangers.check(place)
    (place / "notes/run-1/x").unlink()
    (place / "notes/run-1/y").symlink_to("y")  # a circle leads nowhere
    strangers.check(place)
    os.mkfifo(place / "notes/pipe")
    with pytest.raises(UserError, match=r"a pipe or a device \(notes/pipe\)"):
        strangers.check(place)


def test_links_of_wandb(place: Path) -> None:
    """W&B links to its logs in the user's cache, and nothing of ATOM's reads there; a link that has
    the folder's name is a link as any other."""
    (place / "tb/wandb/run-1").mkdir(parents=True)
    (place / "tb/wandb/run-1/debug-core.log").symlink_to(place.parent / "cache/core.log")
    strangers.check(place)
    (place / "wandb").symlink_to(place.parent)
    with pytest.raises(UserError, match=r"a link that leads out of it \(wandb\)"):
        strangers.check(place)


def test_links_of_hugging_faces_cache(place: Path) -> None:
    model = place / "models--org--name"
    (model / "snapshots/abc").mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs/123").write_text("{}")
    snapshot = model / "snapshots/abc"
    (snapshot / "config.json").symlink_to("../../blobs/123")
    assert strangers.real(snapshot / "config.json", snapshot) == model / "blobs/123"
    (place / "mine").symlink_to(snapshot)
    assert strangers.real(place / "mine/config.json", place / "mine") == model / "blobs/123"
    (snapshot / "bad.json").symlink_to("../../../../secret")
    (snapshot / "pipe.json").symlink_to("../../blobs/pipe")
    os.mkfifo(model / "blobs/pipe")
    for name in ("bad.json", "pipe.json"):
        with pytest.raises(ValueError, match=name):
            strangers.real(snapshot / name, snapshot)


# ---------------------------------------------------------------------------- one module

ROOT = Path(__file__).parent.parent

_OPENS = frozenset({
    "open", "read_text", "write_text", "read_bytes", "write_bytes", "touch", "copyfile", "copy2",
    "copytree", "symlink_to", "hardlink_to", "fdopen", "mkfifo", "mkstemp", "NamedTemporaryFile",
})  # fmt: skip
_GUARDED = frozenset({"files", "guarded", "json_data"})

_PACKAGE, _DESCRIPTOR = "a file of an installed package", "a descriptor that is open"
_PROC, _DATA = "/proc", "the data that the user names, whose links are followed"
OTHERS = {
    "atom/io/files.py": "the module itself",
    "atom/launch/rank.py": "an empty file in a folder that only this user can access",
    "atom/launch/scoring.py": "an empty file in a folder that only this user can access",
    "atom/stages/running.py": _DESCRIPTOR,
    "atom/bench/report.py": _PROC,
    "atom/io/caches.py": _PROC,
    "atom/run_dir/claim.py": _PROC,
    "atom/cli/__init__.py": "/dev/null",
    "atom/cli/new.py": "a package that it has just made in a new folder of its own",
    "atom/registry/installed.py": _PACKAGE,
    "atom/launch/health.py": "a new file of a random name",
    "atom/launch/joined.py": _DESCRIPTOR,
    "atom/run_dir/environment.py": _PACKAGE,
    "atom/release/wheels.py": "a new file in a folder of its own",
    "atom/release/replay.py": "a new file in a folder of its own",
    "atom/release/reproduce.py": "a new file in a folder of its own",
    "atom/titan/weights/state.py": "a new file in a folder of its own",
    "atom/titan/train/machine.py": _PROC,
    "atom/run_dir/logs.py": _DESCRIPTOR,
    "atom/registry/ownership.py": _PACKAGE,
    "atom/plan/device.py": _PACKAGE,
    "atom/plan/scaling.py": _PACKAGE,
    "atom/io/terminal.py": "/dev/null",
    "atom/titan/checkpoint/dcp.py": "a file that it has just written, to have it on the disk",
    "atom/titan/checkpoint/dcp_index.py": _PROC,
    "atom/titan/train/startup.py": _PROC,
    "atom/watch/report.py": _PACKAGE,
    "atom/watch/stop.py": _PROC,
    "atom/data/folder.py": "a folder, to lock it and to have it on the disk",
    "atom/data/shards.py": "a shard, through files.py",
    "atom/data/writing.py": _DESCRIPTOR,
    "atom/io/object_cache.py": "files of its own, in a folder that no other account can write to",
    "atom/io/yaml_data.py": "a configuration, which it measures itself, by links too",
    "plugins/atom-datasets/atom_datasets/compression.py": "a new file of a random name",
    "plugins/atom-datasets/atom_datasets/finding.py": _DATA,
    "plugins/atom-datasets/atom_datasets/kept.py": "a new file of a random name",
    "plugins/atom-datasets/atom_datasets/links.py": "links in a new folder of a random name",
    "plugins/atom-datasets/atom_datasets/mixing/source.py": "a component",
    "plugins/atom-datasets/atom_datasets/probes.py": "a new file in a folder of a random name",
    "plugins/atom-datasets/atom_datasets/tar_members.py": _DESCRIPTOR,
    "plugins/atom-kernels-triton/atom_kernels_triton/tuning.py": _PACKAGE,
    "plugins/atom-launchers/atom_launchers/slurm.py": _PACKAGE,
    "plugins/atom-launchers/atom_launchers/slurm_evaluation.py": _PACKAGE,
    "plugins/atom-tokenizers/atom_tokenizers/files.py": _DESCRIPTOR,
}
"""What opens files by itself, and why these are in no run folder, export or cache."""


def _opens(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "open"
    if not isinstance(function, ast.Attribute) or function.attr not in _OPENS:
        return False
    return not (isinstance(function.value, ast.Name) and function.value.id in _GUARDED)


def test_no_other_code_opens_files() -> None:
    """The conformance kit opens what it has made itself."""
    found = set()
    for path in [*ROOT.glob("atom/**/*.py"), *ROOT.glob("plugins/*/atom_*/**/*.py")]:
        tree = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Call) and _opens(node) for node in tree):
            found.add(path.relative_to(ROOT).as_posix())
    found = {name for name in found if not name.startswith("atom/testing/")}
    assert sorted(found - OTHERS.keys()) == [], "atom/io/files.py opens them safely"
    assert sorted(OTHERS.keys() - found) == [], "needs no exception any more"
