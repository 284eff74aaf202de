"""Keep the settings of earlier starts of a run, with the steps trained with them.

``run.yaml``, ``origins.json`` and ``lock.json`` describe the last start. A difference to the start
before is an event (:data:`atom.run_dir.events.CHANGED`), and the earlier files are in
``history/NUMBER/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.io import files, json_data
from atom.recipe import settings
from atom.recipe.run import Run, read
from atom.run_dir import events
from atom.run_dir.changes import changes

FOLDER = "history"

_IN_LOCK = ("python", "atom", "packages", "code", "device", "variables")
"""Keys of ``lock.json`` that can change the results of a run with the same settings."""

_CHOSEN = "resolved.kernels."


def keep(
    folder: Path,
    run: Run,
    lock: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    step: int,
    contents: Mapping[str, str],
    forced: Sequence[str] = (),
) -> None:
    """Keep the files of the previous start if this one differs, and record the differences.

    Call it before the files are overwritten: if this start is interrupted in between, the folder
    still describes the previous one.

    Args:
        folder: the run folder.
        run: the run as it is resumed.
        lock: content of this start's ``lock.json``.
        names: names of the files to keep; the first is the run file.
        step: step of the checkpoint to resume from, 0 for a new start.
        contents: component -> how its input data has changed, in words.
        forced: changes of the data that are not refused, in words.
    """
    if not files.is_regular(folder / names[0]):
        return
    found = changes(read(folder / names[0]).model_dump(mode="json"), run.model_dump(mode="json"))
    told = {
        change.key: [change.before, change.after]
        for change in found
        if not change.key.startswith(settings.FOLLOW) or change.key.startswith(_CHOSEN)
    }
    versions = _versions(folder / "lock.json", lock)
    if not (told or versions or contents):
        return
    kept = _next(folder / FOLDER)
    unfinished = kept.with_name(f".{kept.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    files.make_folder(kept.parent)
    for name in names:
        if files.is_regular(folder / name):
            files.make_folder((unfinished / name).parent)
            files.copy(folder / name, unfinished / name, below=folder)
    unfinished.rename(kept)
    events.record(
        folder,
        events.CHANGED,
        step=step,
        kept=f"{FOLDER}/{kept.name}",
        settings=told,
        versions=versions,
        contents=dict(contents),
        forced=list(forced),
    )


@dataclass(frozen=True)
class Period:
    """A range of steps trained with the same settings. ``last`` is None for the latest period."""

    first: int
    last: int | None
    file: Path

    def __str__(self) -> str:
        return f"from step {self.first}" if self.last is None else f"to step {self.last}"


def periods(folder: Path, run_file: str) -> list[Period]:
    """Return the periods of a run, in order.

    A step that a later start repeated belongs to the later start.

    Args:
        folder: the run folder.
        run_file: the name of the file with the settings.
    """
    begun: list[tuple[int, int]] = []
    found: list[Path] = []
    for event in events.read(folder):
        match event["event"]:
            case events.CHANGED:
                found.append(folder / event["kept"] / run_file)
            case events.UNDER_WAY:
                _begin(begun, event["step"], len(found))
            case events.NUMERICAL_FAULT if event.get("to_step") is not None:
                _begin(begun, event["to_step"] + 1, len(found))
    found.append(folder / run_file)
    ends = ([first - 1 for first, _ in begun[1:]] + [None])[: len(begun)]
    return [
        Period(first, last, found[number])
        for (first, number), last in zip(begun, ends, strict=True)
    ]


def course(folder: Path, run_file: str) -> tuple[list[Period], dict[str, list[Any]]]:
    """Return the periods of a run, and the settings that differ between them: key -> one value per
    period, or None.

    Raises:
        UserError: the settings of a period are unreadable.
    """
    found = periods(folder, run_file) or [Period(1, None, folder / run_file)]
    each = [settings.flat(read(period.file, below=folder)) for period in found]
    keys = dict.fromkeys(key for flat in each for key in flat)
    values = {key: [flat.get(key) for flat in each] for key in keys}
    return found, {key: all_ for key, all_ in values.items() if any(v != all_[0] for v in all_)}


def _begin(begun: list[tuple[int, int]], step: int, number: int) -> None:
    while begun and begun[-1][0] >= step:
        begun.pop()
    if not begun or begun[-1][1] != number:
        begun.append((step, number))


def _versions(path: Path, lock: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the differences between two locks, by key."""
    try:
        before = json_data.read(path)
    except (OSError, ValueError):
        return {}
    old, new = (settings.leaves(_told(each)) for each in (before, lock))
    keys = dict.fromkeys([*old, *new])
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def _told(lock: Mapping[str, Any]) -> dict[str, Any]:
    listed = lock.get("plugins")
    plugins = {
        str(each["package"]): f"{each.get('version')} {str(each.get('sha256'))[:12]}"
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, dict) and "package" in each
    }
    commits = {
        str(name): {key: each.get(key) for key in ("commit", "dirty")}
        for name, each in (lock.get("repositories") or {}).items()
        if isinstance(each, dict)
    }
    return {name: lock.get(name) for name in _IN_LOCK} | {
        "repositories": commits,
        "plugins": plugins,
    }


def _next(folder: Path) -> Path:
    numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
    return folder / str(max(numbers, default=0) + 1)
