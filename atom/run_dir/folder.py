"""Create the run folder before the ranks start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from atom.errors import UserError
from atom.io import files, strangers
from atom.io.files import is_regular, write_json
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.registry.select import select
from atom.run_dir import claim, history, inputs, provenance, starts
from atom.run_dir.inputs import Inputs

RUN_FILE = "run.yaml"
TOKENIZER = "tokenizer"
LOCK = "lock.json"
ORIGINS = "origins.json"
"""Key -> origin of its value in ``run.yaml``."""
AVERAGE = "average.json"
"""The record of the checkpoints that ``atom average`` has averaged; no run can train there."""

_BEGUN = {"logs", TOKENIZER, claim.FILE_NAME}
"""Names that exist before ``run.yaml`` is written."""


def default() -> Path:
    """Return the default run folder."""
    return Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"


def check_run(folder: Path, *, valid: str = "the folder of a run") -> None:
    """Refuse a folder that holds no run; someone else may have written it.

    Args:
        folder: the folder.
        valid: what the folder may be, for the error.

    Raises:
        UserError: there is no such folder, or it holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder", valid="one of a run")
    strangers.check(folder)
    if not is_regular(folder / RUN_FILE):
        raise UserError(f"{folder} holds no {RUN_FILE}", valid=valid)


def check_usable(folder: Path) -> None:
    """Refuse a folder that cannot hold a run.

    Raises:
        UserError: the folder is not writable, or its content is not a readable run.
    """
    try:
        _check_content(folder)
    except (OSError, RuntimeError) as error:
        # For example a name that is too long, or a folder of another user; pathlib itself raises
        # for a link to itself.
        reason = error.strerror if isinstance(error, OSError) else "a link leads to itself"
        raise UserError(
            f"cannot be a run folder ({reason})",
            valid="a folder of yours",
            key="run.dir",
            value=folder,
        ) from None


def _check_content(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", valid="a folder", key="run.dir", value=folder)
    others = {path.name for path in folder.iterdir()} - _BEGUN if folder.is_dir() else set()
    if others and not os.path.lexists(folder / RUN_FILE):
        raise UserError(
            "is a folder with other things in it",
            valid="a new or empty folder, or one of a run",
            key="run.dir",
            value=folder,
        )
    strangers.check(folder)
    claim.check(folder)
    if os.path.lexists(folder / AVERAGE):
        raise UserError(
            "holds an average of checkpoints, which no run can resume from",
            valid=f"another run.dir, with checkpoint.initial_load={folder}",
            key="run.dir",
            value=folder,
        )
    if os.path.lexists(folder / RUN_FILE):
        read(folder / RUN_FILE)
    check_writable(folder)


def create(
    run: Run,
    host: Host,
    folder: Path,
    *,
    tokenizer: Mapping[str, Path],
    read_by_it: Inputs,
    resumed: int = 0,
    contents: Mapping[str, str] | None = None,
    forced: Sequence[str] = (),
) -> None:
    """Lock the folder for this job, and write the files that the ranks read and their provenance.

    Files of an earlier start are kept: see :mod:`atom.run_dir.history`.

    Args:
        run: the resolved run.
        host: the plugins.
        folder: the run folder.
        tokenizer: the tokenizer's files by name.
        read_by_it: the content of dataset and tokenizer.
        resumed: the step to resume from.
        contents: component -> how its input data has changed since.
        forced: changes of the data that are not refused, in words.

    Raises:
        UserError: another job has locked the folder meanwhile.
    """
    assert run.resolved is not None
    files.make_folder(folder / "logs")
    claim.claim(folder)
    code = provenance.repositories_of(host, patches=run.provenance.patch)
    number = starts.following(folder)
    locked = {"start": number, "step": resumed} | provenance.lock(
        host,
        seed=run.debug.seed,
        device=run.resolved.device,
        kernels=run.resolved.kernels,
        chosen=select(run, host).every(),
        code=code,
    )
    kept: tuple[str, ...] = (RUN_FILE, ORIGINS, LOCK, inputs.FILE_NAME)
    if "tokenizer" in (contents or {}):
        kept += tuple(_names(folder / TOKENIZER))
    history.keep(folder, run, locked, kept, step=resumed, contents=contents or {}, forced=forced)
    if tokenizer:
        files.make_folder(folder / TOKENIZER)
    for name in _names(folder / TOKENIZER):
        if Path(name).name not in tokenizer:
            (folder / name).unlink()
    for name, source in tokenizer.items():
        target = folder / TOKENIZER / name
        # A plugin is trusted for its files, which can lie in a cache of symbolic links.
        if not is_regular(target) or not target.samefile(source):
            files.copy(source.resolve(), target)
    run.write(folder / RUN_FILE)
    read_by_it.write(folder / inputs.FILE_NAME)
    if origins := run.origins:
        write_json(folder / ORIGINS, origins)
    write_json(folder / LOCK, locked)
    names = (RUN_FILE, ORIGINS, LOCK, inputs.FILE_NAME)
    patches = {each.name: each.patch for each in code if each.patch is not None}
    starts.keep(folder, number, names, patches)


def _names(folder: Path) -> list[str]:
    """Return the relative paths of the files in a subfolder of the run."""
    return [f"{folder.name}/{path.name}" for path in folder.glob("*") if is_regular(path)]


def check_writable(folder: Path) -> None:
    """Refuse a folder that is not writable; a missing folder is accepted if it can be created.

    Raises:
        UserError: the folder is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        files.probe(existing)
    except OSError as error:
        raise UserError(
            f"cannot be written to ({error.strerror})",
            valid="a folder of yours",
            key="run.dir",
            value=folder,
        ) from None
