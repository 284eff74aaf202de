"""Other accounts on the machine: caches that code is loaded from, and the claim of a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.errors import UserError
from atom.io import caches
from atom.run_dir import claim, heartbeat

Command = Callable[..., subprocess.CompletedProcess[str]]

NOBODY = 65534
IS_ROOT = os.getuid() == 0


def open_to_all(place: Path) -> Path:
    place.mkdir()
    place.chmod(0o777)
    return place


def open_to_all_though_sticky(place: Path) -> Path:
    """Others cannot take away what is in it, but can put something beside it first."""
    place.mkdir()
    place.chmod(0o1777)
    return place


def below_one_open_to_all(place: Path) -> Path:
    (place / "cache").mkdir(parents=True)
    place.chmod(0o777)
    return place / "cache"


def not_there_below_one_open_to_all(place: Path) -> Path:
    return open_to_all(place) / "cache"


def a_link_to_one_open_to_all(place: Path) -> Path:
    open_to_all(place.with_name("other"))
    place.symlink_to("other")
    return place


def of_another_account(place: Path) -> Path:
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    return place


def below_another_account_s(place: Path) -> Path:
    return of_another_account(place) / "cache"


def of_a_group(place: Path) -> Path:
    place.mkdir()
    os.chown(place, -1, NOBODY)
    place.chmod(0o770)
    return place


def with_a_planted_tokenizer(place: Path) -> Path:
    (place / "bpe-0").mkdir(parents=True)
    os.chown(place / "bpe-0", NOBODY, NOBODY)
    return place


UNSAFE: list[Callable[[Path], Path]] = [
    open_to_all,
    open_to_all_though_sticky,
    below_one_open_to_all,
    not_there_below_one_open_to_all,
    a_link_to_one_open_to_all,
]
if IS_ROOT:  # who else can give files away?
    UNSAFE += [
        of_another_account,
        below_another_account_s,
        of_a_group,
        with_a_planted_tokenizer,
    ]


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in caches._VARIABLES:
        monkeypatch.setenv(variable, "as it is after the test")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("make", UNSAFE, ids=lambda make: make.__name__)
def test_a_cache_that_others_can_write_to_is_refused(
    make: Callable[[Path], Path], tmp_path: Path, forked: Command
) -> None:
    place = make(tmp_path / "place")
    before = sorted(tmp_path.rglob("*"))
    arguments = ("device=cpu", "tokenizer=bytes", f"run.dir={tmp_path / 'run'}")
    done = forked("train", *arguments, cwd=tmp_path, ATOM_CACHE=str(place))
    assert done.returncode == 2, done.stdout
    assert f"atom: the cache {place} " in done.stderr
    assert "in ATOM_CACHE" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("variable", sorted(caches._VARIABLES))
@pytest.mark.parametrize("make", UNSAFE, ids=lambda make: make.__name__)
def test_so_is_a_folder_for_compiled_code(
    make: Callable[[Path], Path], variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path / "place")
    monkeypatch.setenv("ATOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, str(place))
    with pytest.raises(UserError, match=f"in {variable}"):
        caches.keep_compiled_code()


@pytest.mark.slow
def test_a_run_tells_before_it_writes(tmp_path: Path, atom: Command) -> None:
    place = open_to_all(tmp_path / "place")
    arguments = ("device=cpu", "tokenizer=bytes", f"run.dir={tmp_path / 'run'}")
    done = atom("train", *arguments, cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(place))
    assert done.returncode == 2, done.stdout
    assert "in TORCHINDUCTOR_CACHE_DIR" in done.stderr
    assert not (tmp_path / "run").exists()
    assert not list(place.iterdir())


def private(place: Path) -> Path:
    place.mkdir(mode=0o700)
    return place


def readable(place: Path) -> Path:
    place.mkdir(mode=0o755)
    return place


def below_a_sticky_one(place: Path) -> Path:
    return open_to_all_though_sticky(place) / "cache"


def not_there_yet(place: Path) -> Path:
    return place / "a" / "b"


def a_link_to_one_s_own(place: Path) -> Path:
    place.with_name("other").mkdir()
    place.symlink_to("other")
    return place


def filled_by_an_earlier_version(place: Path) -> Path:
    (place / "bpe-0").mkdir(parents=True)
    (place / "bpe-0/tokenizer.json").touch(0o644)
    return place


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    "make",
    [
        private,
        readable,
        below_a_sticky_one,
        not_there_yet,
        a_link_to_one_s_own,
        filled_by_an_earlier_version,
    ],
    ids=lambda make: make.__name__,
)
def test_a_cache_of_one_s_own_is_used(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path / "place")
    monkeypatch.setenv("ATOM_CACHE", str(place))
    existed = place.is_dir()
    caches.keep_compiled_code()
    for variable in caches._VARIABLES:
        assert Path(os.environ[variable]).is_relative_to(place)
    assert (place / "compiled").stat().st_mode & 0o777 == 0o700
    assert existed or place.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("unset")
def test_where_no_home_can_be_written_to_it_is_below_that_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOM_CACHE", "/proc/nothing")
    monkeypatch.setattr(caches.tempfile, "gettempdir", lambda: str(tmp_path))
    caches.keep_compiled_code()
    place = tmp_path / f"atom-{os.getuid()}"
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(place)
    assert place.stat().st_mode & 0o777 == 0o700
    for variable in caches._VARIABLES:
        monkeypatch.delenv(variable)
    place.chmod(0o777)
    with pytest.raises(UserError, match="can be written to by every account"):
        caches.keep_compiled_code()


@pytest.mark.slow
def test_torch_compiles_into_it_and_not_below_tmp(tmp_path: Path) -> None:
    """``/tmp/torchinductor_$USER`` is a name that another account may have taken."""
    code = (
        "from atom.io import caches; caches.keep_compiled_code(); import json, os\n"
        "from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir\n"
        "print(json.dumps([cache_dir(), triton_cache_dir(0)]))"
    )
    kept = {n: v for n, v in os.environ.items() if n not in caches._VARIABLES}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=kept | {"ATOM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    for folder in json.loads(done.stdout):
        assert Path(folder).is_relative_to(tmp_path / "cache")


# ------------------------------------------------------------------ the claim of a run folder

CLAIM = """
import os, sys, time
from pathlib import Path
from atom.run_dir import claim
os.umask(0o022)
claim.claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""

LOCK = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def test_no_other_account_can_lock_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / claim.FILE_NAME).touch(0o644)  # as an earlier version has left it
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "claimed\n"
        assert (run / claim.FILE_NAME).stat().st_mode & 0o777 == 0o600
        assert claim.holder(run)["pid"] == job.pid  # type: ignore[index]
        assert claim._of_another_account(run) == {}, "the kernel lists the lock"
        job.communicate("")
    assert claim.holder(run) is None
    assert claim._of_another_account(run) is None
    (run / "logs").mkdir()
    heartbeat.beat(run, 1, 1, 64)
    assert claim._of_another_account(run) == {}, "it may be at work on another machine"
    if not IS_ROOT:
        return
    for folder in [run, *list(run.parents)[:3]]:
        folder.chmod(0o755)
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-S", "-c", LOCK, str(run / claim.FILE_NAME)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr
    with (run / claim.FILE_NAME).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
