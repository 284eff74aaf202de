"""A disk that is full, too small, or not to be written to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atom.run_dir import checkpoint, events, metrics

STEPS = 24
RUN = ("parallelism=fsdp", "launch.ranks=2", f"training.steps={STEPS}", "checkpoint.interval=3")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a disk in memory; skipped where that is not allowed."""
    mounted: list[Path] = []

    def run(name: str, *options: str) -> Path:
        place = tmp_path / name
        place.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"mounting is not allowed: {result.stderr.strip()}")
        mounted.append(place)
        return place

    yield run
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Write a file that takes all that is left of a disk."""
    stuffing = disk / "logs/stuffing"
    with stuffing.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"0" * size)
            except OSError:
                size //= 2
    return stuffing


@pytest.mark.slow
def test_disk_is_full_during_saves(
    start: Callable, mount: Callable, train: Callable, rows: Callable, tmp_path: Path
) -> None:
    """Saves fail, training goes on, and once there is room again they succeed."""
    place = mount("run", "size=40m")
    job = start("run", *RUN, "checkpoint.keep_latest_k=2")
    job.wait_for_step(4)
    stuffing = fill(place)

    def failed() -> list[dict]:
        return [e for e in events.read(place) if e["event"] == events.CHECKPOINT_FAILED]

    job.wait_for(failed)
    stuffing.unlink()
    code, shown, said = job.end()
    assert code == 0, said
    assert "could not be written" in shown
    assert not [e for e in events.read(place) if e["event"] == events.FAILED]
    assert STEPS in checkpoint.steps(place / "checkpoint")
    undisturbed = train(tmp_path / "undisturbed", *RUN)
    for name in ("step", "loss", "grad_norm"):
        assert [row[name] for row in rows(place)] == [row[name] for row in undisturbed], name


def test_rows_wait_for_room(mount: Callable) -> None:
    disk = mount("disk", "size=64k")
    (disk / "logs").mkdir()
    path = disk / metrics.FILE_NAME
    writer = metrics.MetricsWriter(path)
    floats = ("loss", "grad_norm", "lr", "tokens_per_second", "step_seconds", "memory_gib")
    row = dict.fromkeys(floats, 1.0)

    def append(step: int) -> None:
        writer.append(metrics.StepMetrics(step=step, tokens_seen=1, **row))

    append(1)
    stuffing = fill(disk)
    for step in range(2, 60):  # more than the page that the first row is in
        append(step)
    read = [each.step for each in metrics.read(path)]
    assert read == list(range(1, len(read) + 1))
    assert len(read) < 59
    stuffing.unlink()
    append(60)
    assert [each.step for each in metrics.read(path)] == list(range(1, 61))
    fill(disk)
    for step in range(61, 120):
        append(step)
    with pytest.raises(OSError, match="No space left"):
        writer.close()


@pytest.mark.slow
def test_disk_is_too_small(atom: Callable, mount: Callable, small: tuple, tmp_path: Path) -> None:
    """It is told before ranks start, from the size of the model."""
    place = mount("run", "size=4m")
    given = ("train", *small, *RUN, f"run.dir={place}")
    result = atom(*given)
    assert result.returncode == 2
    assert f"run.dir={place}" in result.stderr
    assert "its disk has 4.0 MiB free, and 2 checkpoints of " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(place.iterdir())
    # The size that is said is that of a checkpoint.
    said = float(result.stderr.partition("2 checkpoints of ")[2].split()[0]) * 2**20
    assert atom(*given[:-1], f"run.dir={tmp_path / 'roomy'}", "training.steps=3").returncode == 0
    manifest = checkpoint.read_manifest(tmp_path / "roomy/checkpoint/step-3")
    size = sum(file.size for name, file in manifest.files.items() if name.endswith(".distcp"))
    # Each tensor has a header, which matters in a model as small as this.
    assert said <= size < 1.5 * said


@pytest.mark.slow
def test_checkpoint_folder_is_read_only(
    atom: Callable, mount: Callable, small: tuple, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert atom("train", *small, f"run.dir={run}", "training.steps=1").returncode == 0
    shutil.move(run / "checkpoint", tmp_path / "old")
    if os.geteuid():
        (run / "checkpoint").mkdir(mode=0o555)
    else:  # whom no permissions hold back
        mount("run/checkpoint", "ro")
    result = atom("train", *small, f"run.dir={run}", "training.steps=2")
    assert result.returncode == 2
    assert f"run.dir={run}/checkpoint (command line): cannot be written to (" in result.stderr
    assert len(result.stderr.splitlines()) == 1
