"""The layout of a release, and its manifest.

``release.json`` lists every other file with its size and SHA-256. A signature covers all files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import is_regular, sha256, write_json

MANIFEST = "release.json"
SIGNATURE = "model.sig"
FORM = "release.yaml"
CARD = "README.md"
DATA_CARD = "DATA.md"
CROISSANT = "croissant.json"
BOM = "bom.cdx.json"
PROVENANCE = "provenance.intoto.json"
OPENNESS = "MOF.yml"
RUNS = "runs"
CODE = "code"
CHECKPOINTS = "checkpoints"

FORMAT = 1
_MOST = 64 << 20
_MOST_FILES = 100_000


@dataclass(frozen=True)
class Saved:
    """A released checkpoint.

    Attributes:
        step: its step.
        folder: its folder in the release.
        start: the number of the start that saved it; None if an older ATOM did.
        resumed: the step that this start has resumed from.
        whole: whether it has the optimizer's state.
    """

    step: int
    folder: str
    start: int | None
    resumed: int
    whole: bool


@dataclass(frozen=True)
class Stage:
    """A run of a release.

    Attributes:
        name: the name of its folder in ``runs/``.
        origin: the stage that it begins from, and its step; None for none in the release.
        checkpoints: in the order of their steps.
    """

    name: str
    origin: tuple[str, int] | None
    checkpoints: tuple[Saved, ...]


@dataclass(frozen=True)
class Bundle:
    """A release on disk: its folder, its manifest, and the stages in it."""

    folder: Path
    manifest: dict[str, Any]
    stages: tuple[Stage, ...]

    def run_folder(self, stage: Stage) -> Path:
        """Return the folder with the files of a stage's run."""
        return self.folder / RUNS / stage.name


def names(folder: Path) -> Iterator[str]:
    """Yield the relative path of every file of a release.

    Raises:
        UserError: it holds a link, a pipe, a device, or too many files.
    """
    found = 0
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in (*folders, *sorted(files)):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_dir() or is_regular(path)):
                raise UserError(
                    f"{folder} holds {path.relative_to(folder)}, which is no regular file",
                    valid="a folder of files, without links",
                )
        for name in sorted(files):
            found += 1
            if found > _MOST_FILES:
                raise UserError(f"{folder} holds more than {_MOST_FILES:,} files")
            yield Path(place, name).relative_to(folder).as_posix()


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of the files that are in the folder."""
    files = {
        name: [(folder / name).stat().st_size, sha256(folder / name)]
        for name in names(folder)
        if name not in (MANIFEST, SIGNATURE)
    }
    write_json(folder / MANIFEST, {"format": FORMAT} | content | {"files": files})


def read(folder: Path) -> Bundle:
    """Read the manifest of a release.

    Raises:
        UserError: there is none, or it is not valid.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder", valid="one of a release")
    try:
        content = json_data.read(folder / MANIFEST, most=_MOST)
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        stages = tuple(_stage(each) for each in content["stages"])
        for size, digest in content["files"].values():
            if not isinstance(size, int) or not isinstance(digest, str):
                raise ValueError("a file has no size or digest")
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {MANIFEST}", valid="a folder that atom release wrote"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST} cannot be read as a release ({type(error).__name__}: {error})"
        ) from None
    return Bundle(folder, content, stages)


def _stage(told: dict[str, Any]) -> Stage:
    origin = told["origin"]
    return Stage(
        _plain(told["name"]),
        None if origin is None else (_plain(origin[0]), int(origin[1])),
        tuple(
            Saved(
                int(each["step"]),
                _below(each["folder"]),
                None if each["start"] is None else int(each["start"]),
                int(each["resumed"]),
                bool(each["whole"]),
            )
            for each in told["checkpoints"]
        ),
    )


def _plain(name: Any) -> str:
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise ValueError("a name of a run is no plain name")
    return name


def _below(path: Any) -> str:
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("a path leads out of the release")
    return path
