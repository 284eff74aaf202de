"""Keep the files of every start of a run: ``starts/NUMBER/``, never overwritten.

A folder holds ``run.yaml``, ``lock.json``, ``origins.json`` and ``inputs.json`` of that start,
``patches/`` of code that differs from its commit, and ``machine-RANK.json`` of every machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atom.io import files

FOLDER = "starts"


def numbers(run: Path) -> list[int]:
    """Return the numbers of a run's starts, in order."""
    found = (path.name for path in (run / FOLDER).glob("[0-9]*") if not path.is_symlink())
    return sorted(int(name) for name in found if name.isascii() and name.isdecimal())


def following(run: Path) -> int:
    """Return the number of the start after the last one."""
    return max(numbers(run), default=0) + 1


def newest(run: Path) -> Path | None:
    """Return the folder of the last start; None if an older ATOM has written the run."""
    found = numbers(run)
    return place(run, found[-1]) if found else None


def place(run: Path, number: int) -> Path:
    """Return the folder of a start."""
    return run / FOLDER / str(number)


def keep(run: Path, number: int, names: Iterable[str], patches: Mapping[str, bytes]) -> None:
    """Copy the files of a start from the run folder, and write its patches.

    Args:
        run: the run folder.
        number: the number of the start.
        names: names of files in the run folder; missing ones are left out.
        patches: the patches by name.
    """
    kept = place(run, number)
    unfinished = kept.with_name(f".{kept.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_folder(kept.parent)
    files.make_folder(unfinished)
    for name in names:
        if files.is_regular(run / name):
            files.copy(run / name, unfinished / name, below=run)
    if patches:
        files.make_folder(unfinished / "patches")
    for name, content in patches.items():
        files.write_bytes(unfinished / "patches" / f"{name}.patch", content)
    unfinished.rename(kept)


def add_machine(run: Path, rank: int, facts: dict[str, Any]) -> None:
    """Record the machine of a rank for the last start."""
    if (kept := newest(run)) is not None:
        files.write_json(kept / f"machine-{rank}.json", facts)
