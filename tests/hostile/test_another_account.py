"""Another account on the machine owns the run folder, and changes it while commands look at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atom.recipe.run import parse
from atom.run_dir import claim, events
from atom.run_dir.metrics import StepMetrics

NOBODY = 65534
SECRET = "ssh-ed25519 AAAA victim\n"
IS_ROOT = os.getuid() == 0
"""Who else can act as another account? Without, it is another process of the same one."""

SECTIONS = {
    "architecture": {"name": "llama3", "dim": 64},
    "tokenizer": {"name": "bytes"},
    "optimizer": {"name": "AdamW"},
    "dataset": {"name": "stdlib"},
    "parallelism": {"name": "mesh"},
    "training": {"steps": 2, "seq_len": 64},
}

EXCHANGE = """
import os, sys
run, target = sys.argv[1:]
print("at work", flush=True)
while True:
    for name in os.listdir(run):
        path, kept, link = (os.path.join(run, n) for n in (name, ".kept", ".link"))
        if name.startswith("."):
            continue
        try:
            os.symlink(target, link)
            os.rename(path, kept)
            os.rename(link, path)
            os.rename(kept, path)
        except OSError:
            for one in (link, kept):
                try:
                    os.unlink(one)
                except OSError:
                    pass
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every account can enter, with a file that only its owner can read."""
    place = Path(tempfile.mkdtemp(prefix="atom-accounts-"))
    place.chmod(0o755)
    (place / "id").write_text(SECRET)
    (place / "id").chmod(0o600)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def run(place: Path) -> Path:
    """A run of the other account."""
    run = place / "run"
    run.mkdir()
    parse(SECTIONS).write(run / "run.yaml")
    rows = [
        StepMetrics(
            step=step, loss=2.5, grad_norm=1.0, lr=1e-3, tokens_seen=step, tokens_per_second=9.0,
            step_seconds=0.5, memory_gib=0.5,
        ).to_json()
        for step in (1, 2)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join([*rows, ""]))
    events.record(run, events.STARTED, ranks=1, attempt=1)
    events.record(run, events.FINISHED, step=2, tokens_seen=2)
    (run / claim.FILE_NAME).write_text('{"pid": 1, "host": "x", "since": "now"}\n')
    (run / claim.FILE_NAME).chmod(0o600)
    for path in (run, *run.iterdir()):
        if IS_ROOT:
            os.chown(path, NOBODY, NOBODY)
    return run


def as_nobody(code: str, *arguments: object) -> subprocess.Popen[str]:
    account: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return subprocess.Popen(
        ["/usr/bin/env", "python3", "-S", "-c", code, *map(str, arguments)],
        cwd="/", env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True,
        **(account if IS_ROOT else {}),
    )  # fmt: skip


def text_of(path: Path) -> str:
    """Return the text of a file that another account may exchange for a link at any moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    with os.fdopen(descriptor) as file:
        return file.read()


def test_its_run_can_be_looked_at(run: Path, place: Path, forked: Callable) -> None:
    """Its claim is no claim of ours, and what it wrote is told as any run's."""
    result = forked("status", str(run))
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout
    result = forked("report", str(run), "--out", str(place / "report.html"))
    assert result.returncode == 0, result.stderr


def test_files_that_are_exchanged_for_links(run: Path, place: Path, forked: Callable) -> None:
    """A private file is neither told nor written to, whichever moment a command comes in."""
    with as_nobody(EXCHANGE, run, place / "id") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        try:
            for number in range(12):
                command = ("status", "report", "logs", "compare")[number % 4]
                also = (str(run),) if command == "compare" else ()
                result = forked(command, str(run), *also)
                assert SECRET.strip() not in result.stdout + result.stderr, command
                assert "Traceback" not in result.stderr, result.stderr
                assert result.returncode in (0, 2), result.stderr
                assert "AAAA" not in text_of(run / "report.html")
            assert other.poll() is None, "it has worked all the time"
        finally:
            other.kill()
    assert (place / "id").read_text() == SECRET
    assert (place / "id").stat().st_mode & 0o777 == 0o600
