"""The run folder: what is written before the ranks start, and whether an old one may go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from atom import checkpoint, claim, lock
from atom.changes import Change, changes
from atom.errors import UserError, shown
from atom.files import write_json
from atom.host import Host
from atom.run import Run, read

RUN_FILE = "run.yaml"
TOKENIZER = "tokenizer"
ORIGINS = "origins.json"
"""Key -> where its value in ``run.yaml`` came from."""

_BEGUN = {"logs", TOKENIZER, claim.FILE_NAME}
"""What is there before ``run.yaml`` is."""


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
    claim.check(folder)
    others = {path.name for path in folder.iterdir()} - _BEGUN if folder.is_dir() else set()
    if others and not (folder / RUN_FILE).is_file():
        raise UserError(
            "is a folder with other things in it; valid: a new or empty folder, or one of a run",
            key="run.dir",
            value=folder,
        )
    check_writable(folder)


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run goes on from, and the settings that have changed since."""

    step: int
    changes: tuple[Change, ...]


def check_continues(folder: Path, run: Run) -> Resumption | None:
    """Return where the run in ``folder`` goes on, or None if it begins anew.

    Raises:
        UserError: the folder's checkpoints belong to a run that this one cannot go on.
    """
    steps = checkpoint.resumable(folder / checkpoint.FOLDER)
    if not steps:
        return None
    found = changes(read(folder / RUN_FILE).model_dump(mode="json"), run.model_dump(mode="json"))
    for change in found:
        if change.kind == "refused" and not run.resume.force:
            raise UserError(
                f"{folder} holds checkpoints of a run with {change.key}={shown(change.before)}; "
                "valid: that value, another run.dir, or resume.force=true",
                key=change.key,
                value=change.after,
            )
    return Resumption(steps[0], tuple(found))


def create(folder: Path, run: Run, host: Host, files: Mapping[str, Path]) -> None:
    """Take the folder for this job, and write what the ranks read: the run, the lock and the
    tokenizer's files.

    Raises:
        UserError: another job has taken it meanwhile.
    """
    assert run.resolved is not None
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    claim.claim(folder)
    if files:
        (folder / TOKENIZER).mkdir(exist_ok=True)
    for name, source in files.items():
        target = folder / TOKENIZER / name
        if not target.exists() or not target.samefile(source):
            shutil.copyfile(source, target)
    target = folder / RUN_FILE
    if target.exists() and read(target).model_dump() != run.model_dump():
        keep = next(p for n in range(1, 10**6) if not (p := folder / f"run.{n}.yaml").exists())
        target.rename(keep)
    run.write(target)
    if origins := run.origins:
        write_json(folder / ORIGINS, origins)
    write_json(
        folder / "lock.json",
        lock.lock(
            host,
            seed=run.debug.get("seed"),
            device=run.resolved.device,
            kernels=run.resolved.kernels,
        ),
    )


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written to; one that is not there yet may be made.

    Raises:
        UserError: it cannot be written to.
    """
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
