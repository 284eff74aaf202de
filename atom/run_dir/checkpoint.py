"""Verify checkpoints on disk, and find the one to resume from.

``checkpoint/step-N`` appears by an atomic rename once every file in it is written and synced; until
then it is ``checkpoint/.step-N.partial``. Its ``manifest.json`` holds the size and SHA-256 of every
other file. A checkpoint that fails verification is renamed to ``step-N.damaged`` and kept for
inspection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.io.files import is_regular, sha256, write_text

FOLDER = "checkpoint"
MANIFEST = "manifest.json"
TENSORS = "tensors.json"
"""The digests of a checkpoint's tensors: see :mod:`atom.titan.checkpoint.tensor_digest`."""
HF_INDEX = "model.safetensors.index.json"

_STEP = re.compile(r"step-([0-9]{1,19})")
_MOST = 256 << 20


@dataclass(frozen=True)
class File:
    """The manifest's entry for a file; ``size`` is in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint.

    Attributes:
        step: the training step.
        model_only: True if it holds only weights, so that no run can resume from it.
        files: the files by name; all are in one folder.
    """

    step: int
    model_only: bool
    files: dict[str, File]

    def write(self, path: Path) -> None:
        """Write the manifest as JSON; the caller syncs it."""
        files = {name: [file.size, file.sha256] for name, file in sorted(self.files.items())}
        content = {"step": self.step, "model_only": self.model_only, "files": files}
        write_text(path, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint folder.

    Raises:
        ValueError: the manifest is missing or invalid; the message says which.
    """
    try:
        content: Any = json_data.read(folder / MANIFEST, most=_MOST)
        files = {
            str(name): File(int(size), str(sha)) for name, (size, sha) in content["files"].items()
        }
        return Manifest(int(content["step"]), bool(content["model_only"]), files)
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None


def steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in ``folder``, judged by name, in order."""
    if not folder.is_dir():
        return []
    found = [_STEP.fullmatch(path.name) for path in folder.iterdir() if not path.is_symlink()]
    return sorted(int(match[1]) for match in found if match)


def resumable(folder: Path) -> list[int]:
    """Return the steps that training can resume from, newest first; checks manifest and sizes."""
    found = []
    for step in reversed(steps(folder)):
        place = step_folder(folder, step)
        try:
            manifest = read_manifest(place)
        except ValueError:
            continue
        if not manifest.model_only and missing(place, manifest) is None:
            found.append(step)
    return found


def last_whole(folder: Path) -> int:
    """Return the last step with a complete checkpoint, including weights-only checkpoints of any
    format; 0 if there is none."""
    for step in reversed(steps(folder)):
        place = step_folder(folder, step)
        try:
            if is_exported(place) or missing(place, read_manifest(place)) is None:
                return step
        except ValueError:
            continue
    return 0


def in_own_format(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, damaged or not, except exported weights, in order."""
    return [step for step in steps(folder) if not is_exported(step_folder(folder, step))]


def tensors(folder: Path, step: int) -> str | None:
    """Return the digest of all tensors of a checkpoint, or None if it has none."""
    try:
        found = json_data.read(step_folder(folder, step) / TENSORS, most=_MOST)
    except (OSError, ValueError):
        return None
    digest = found.get("digest")
    return digest if isinstance(digest, str) else None


def is_exported(place: Path) -> bool:
    """Return whether a checkpoint is exported weights in Hugging Face's format.

    This is the last checkpoint of a run with ``checkpoint.last_save_in_hf``, and no run resumes
    from it. Its index file is written last."""
    return (place / HF_INDEX).is_file() and not (place / MANIFEST).exists()


def step_folder(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in the checkpoint folder."""
    return folder / f"step-{step}"


def partial_folder(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint while it is incomplete."""
    return folder / f".step-{step}.partial"


def missing(place: Path, manifest: Manifest) -> str | None:
    """Return the first mismatch between a checkpoint's files and the names and sizes of its
    manifest, or None.
    """
    for name, file in manifest.files.items():
        if "/" in name or name.startswith(".."):
            return f"{MANIFEST} names {name!r}, which is not in the folder"
        try:
            size = (place / name).lstat().st_size
        except (OSError, ValueError):
            return f"{name} is missing"
        if not is_regular(place / name):
            return f"{name} is no regular file"
        if size != file.size:
            return f"{name} has {size} bytes instead of {file.size}"
    return None


def broken(place: Path, hashed: int = 0) -> str | None:
    """Return why a checkpoint is damaged, or None.

    Args:
        place: its folder.
        hashed: digests of at most so many bytes are checked, those of small files first.
    """
    try:
        manifest = read_manifest(place)
    except ValueError as error:
        return str(error)
    names = []
    for name, file in sorted(manifest.files.items(), key=lambda each: each[1].size):
        hashed -= file.size
        if hashed < 0:
            break
        names.append(name)
    return missing(place, manifest) or altered(place, manifest, names)


def set_aside(folder: Path, step: int) -> Path:
    """Rename a damaged checkpoint so that no run resumes from it; return its new path."""
    place = step_folder(folder, step)
    aside = place.with_name(f"{place.name}.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = place.with_name(f"{place.name}.damaged.{number}")
    return place.rename(aside)


def altered(place: Path, manifest: Manifest, names: Iterable[str]) -> str | None:
    """Return the first of the files ``names`` that differs from its digest in the manifest, or
    None.
    """
    for name in names:
        if sha256(place / name) != manifest.files[name].sha256:
            return f"{name} has other content than it was saved with"
    return None
