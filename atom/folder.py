"""The run folder: what is written before the ranks start, and whether an old one may go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from atom import checkpoint, lock
from atom.errors import UserError
from atom.host import Host
from atom.run import Run, read

RUN_FILE = "run.yaml"
TOKENIZER = "tokenizer"

IDENTITY = (
    "architecture",
    "tokenizer",
    "dataset",
    "training.seq_len",
    "debug.seed",
    "resolved.vocab_size",
    "resolved.global_batch_size",
)
"""What a checkpoint's weights and data position belong to. A change of these is another run."""


def default() -> Path:
    """Return the folder of a run that names none."""
    return Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"


def check_usable(folder: Path) -> None:
    """Refuse a folder that cannot hold a run.

    Raises:
        UserError: it cannot be written to, or holds something else than a run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file; valid: a folder", key="run.dir", value=folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RUN_FILE).is_file():
        raise UserError(
            "is a folder with other things in it; valid: a new or empty folder, or one of a run",
            key="run.dir",
            value=folder,
        )
    _check_writable(folder)


def check_continues(folder: Path, run: Run) -> int | None:
    """Return the step of the newest checkpoint in ``folder``, or None where a run begins anew.

    Raises:
        UserError: the folder's checkpoints belong to a run that this one cannot go on.
    """
    steps = checkpoint.resumable(folder / checkpoint.FOLDER)
    if not steps:
        return None
    old, new = read(folder / RUN_FILE).model_dump(mode="json"), run.model_dump(mode="json")
    for key in IDENTITY:
        before, after = _first_difference(key, _at(old, key), _at(new, key))
        if before != after:
            raise UserError(
                f"{folder} holds checkpoints of a run with {before[0]}={before[1]}; valid: that "
                "value, or another run.dir",
                key=after[0],
                value=after[1],
            )
    return steps[0]


def create(folder: Path, run: Run, host: Host, files: Mapping[str, Path]) -> None:
    """Write what the ranks read: the run, the lock and the tokenizer's files."""
    assert run.resolved is not None
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    if files:
        (folder / TOKENIZER).mkdir(exist_ok=True)
    for name, source in files.items():
        target = folder / TOKENIZER / name
        if not target.exists() or not target.samefile(source):
            shutil.copyfile(source, target)
    target = folder / RUN_FILE
    if target.exists() and read(target) != run:
        keep = next(p for n in range(1, 10**6) if not (p := folder / f"run.{n}.yaml").exists())
        target.rename(keep)
    run.write(target)
    lock.write(
        folder / "lock.json",
        lock.lock(host, seed=run.debug.get("seed"), device=run.resolved.device),
    )


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    probe = existing / ".atom-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot be written to ({error.strerror}); valid: a folder of yours",
            key="run.dir",
            value=folder,
        ) from None


def _at(sections: Any, key: str) -> Any:
    for part in key.split("."):
        sections = (sections or {}).get(part)
    return sections


def _first_difference(key: str, old: Any, new: Any) -> tuple[Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return _first_difference(f"{key}.{name}", old.get(name), new.get(name))
    return (key, old), (key, new)
