"""Checkpoints on disk: whole or not there, and data only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from atom.run_dir import checkpoint
from atom.titan.checkpoint.dcp import AtomicWriter, HostileCheckpointError, SafePlanner, SafeReader


def state() -> dict:
    return {
        "weight": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
        "nested": {"moment": torch.full((5,), 2.5), "betas": (0.9, 0.95), "step": 7},
    }


def save(folder: Path, step: int = 7, model_only: bool = False) -> Path:
    writer = AtomicWriter(folder, step, model_only=model_only)
    dcp.save(state(), storage_writer=writer, no_dist=True)
    return checkpoint.step_folder(folder, step)


def load(place: Path) -> dict:
    values = {
        "weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "nested": {"moment": torch.zeros(5), "betas": (0.0, 0.0), "step": 0},
    }
    dcp.load(values, storage_reader=SafeReader(place), planner=SafePlanner(), no_dist=True)
    return values


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path)


def problem(place: Path) -> str | None:
    try:
        manifest = checkpoint.read_manifest(place)
    except ValueError as error:
        return str(error)
    return checkpoint.missing(place, manifest) or checkpoint.altered(
        place, manifest, manifest.files
    )


def test_what_is_saved_is_loaded(saved: Path) -> None:
    assert problem(saved) is None
    loaded = load(saved)
    assert torch.equal(loaded["weight"], state()["weight"])
    assert torch.equal(loaded["nested"]["moment"], state()["nested"]["moment"])
    assert loaded["nested"]["step"] == 7
    assert loaded["nested"]["betas"] == (0.9, 0.95)


def test_manifest_names_every_file(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {*checkpoint.read_manifest(saved).files, checkpoint.MANIFEST}
    assert not list(saved.parent.glob(".*")), "nothing partial is left"


def test_a_save_that_fails_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(CheckpointException, match="No space left"):
        save(tmp_path)
    assert checkpoint.steps(tmp_path) == []


def test_saving_a_step_again_replaces_it(saved: Path) -> None:
    before = checkpoint.read_manifest(saved)
    (saved / "stray").touch()
    assert save(saved.parent) == saved
    assert not (saved / "stray").exists()
    assert set(checkpoint.read_manifest(saved).files) == set(before.files)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda place, data: (place / data).unlink(), "__0_0.distcp is missing"),
        (lambda place, data: os.truncate(place / data, 100), "has 100 bytes instead of"),
        (lambda place, data: flip(place / data), "has other content than it was saved with"),
        (lambda place, _: flip(place / ".metadata"), ".metadata has other content"),
        (lambda place, _: (place / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda place, _: (place / "manifest.json").write_text("{"), "cannot be read"),
        (lambda place, _: (place / "manifest.json").write_text("[]"), "cannot be read"),
    ],
    ids=["missing", "truncated", "bit flip", "index", "no manifest", "half manifest", "a list"],
)
def test_damage_is_found(saved: Path, damage, reason: str) -> None:
    damage(saved, "__0_0.distcp")
    assert reason in str(problem(saved))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_manifest_that_names_a_file_elsewhere(saved: Path) -> None:
    manifest = checkpoint.read_manifest(saved)
    files = {**manifest.files, "../secret": checkpoint.File(1, "")}
    checkpoint.Manifest(7, False, files).write(saved / checkpoint.MANIFEST)
    assert "not in the folder" in str(problem(saved))


def test_only_what_training_can_go_on_from_is_resumable(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    save(tmp_path, 20, model_only=True)
    (tmp_path / ".step-25.partial").mkdir()
    os.truncate(tmp_path / "step-15/__0_0.distcp", 3)
    assert checkpoint.steps(tmp_path) == [5, 10, 15, 20]
    assert checkpoint.resumable(tmp_path) == [10, 5]
    aside = checkpoint.set_aside(tmp_path, 15)
    assert aside.name == "step-15.damaged"
    assert checkpoint.steps(tmp_path) == [5, 10, 20]


# ---------------------------------------------------------------------------- hostile ones


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_hostile_index_runs_nothing(saved: Path, tmp_path: Path) -> None:
    proof = tmp_path / "owned"
    (saved / ".metadata").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(HostileCheckpointError, match=r"posix\.system"):
        SafeReader(saved).read_metadata()
    assert not proof.exists()


def test_hostile_value_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "owned"
    values = state()
    values["nested"]["step"] = Payload(proof)
    dcp.save(values, storage_writer=AtomicWriter(tmp_path, 1, model_only=False), no_dist=True)
    proof.unlink(missing_ok=True)
    with pytest.raises(CheckpointException, match=r"HostileCheckpointError: .*step is no data"):
        load(tmp_path / "step-1")
    assert not proof.exists()


def test_index_that_names_a_file_outside(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        object.__setattr__(info, "relative_path", f"../step-7/{info.relative_path}")
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointException, match="a file outside of it"):
        load(saved)
