"""The run folder: what is written before the ranks start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from atom.errors import UserError
from atom.io import files, strangers
from atom.io.files import is_regular, write_json
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.run_dir import claim, history, inputs, provenance
from atom.run_dir.inputs import Inputs

RUN_FILE = "run.yaml"
TOKENIZER = "tokenizer"
LOCK = "lock.json"
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
        UserError: it cannot be written to, or holds something else than a run that can be read.
    """
    try:
        _check_content(folder)
    except (OSError, RuntimeError) as error:
        # A name that is too long, a folder of somebody else's; a link to itself is pathlib's own.
        reason = error.strerror if isinstance(error, OSError) else "a link leads to itself"
        raise UserError(
            f"cannot be a run folder ({reason}); valid: a folder of yours",
            key="run.dir",
            value=folder,
        ) from None


def _check_content(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file; valid: a folder", key="run.dir", value=folder)
    others = {path.name for path in folder.iterdir()} - _BEGUN if folder.is_dir() else set()
    if others and not os.path.lexists(folder / RUN_FILE):
        raise UserError(
            "is a folder with other things in it; valid: a new or empty folder, or one of a run",
            key="run.dir",
            value=folder,
        )
    strangers.check(folder)
    claim.check(folder)
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
) -> None:
    """Take the folder for this job, and write what the ranks read and what they are.

    What it held of another start is kept: see :mod:`atom.run_dir.history`.

    Args:
        run: resolved.
        host: the plugins.
        folder: of the run.
        tokenizer: its files by name.
        read_by_it: what the dataset and the tokenizer hold.
        resumed: the step that the run goes on from.
        contents: component -> how what it reads has changed since.

    Raises:
        UserError: another job has taken it meanwhile.
    """
    assert run.resolved is not None
    files.make_folder(folder / "logs")
    claim.claim(folder)
    locked = provenance.lock(
        host, seed=run.debug.seed, device=run.resolved.device, kernels=run.resolved.kernels
    )
    kept: tuple[str, ...] = (RUN_FILE, ORIGINS, LOCK, inputs.FILE_NAME)
    if "tokenizer" in (contents or {}):
        kept += tuple(_names(folder / TOKENIZER))
    history.keep(folder, run, locked, kept, step=resumed, contents=contents or {})
    if tokenizer:
        files.make_folder(folder / TOKENIZER)
    for name in _names(folder / TOKENIZER):
        if Path(name).name not in tokenizer:
            (folder / name).unlink()
    for name, source in tokenizer.items():
        target = folder / TOKENIZER / name
        # A plugin vouches for its files, which may lie in a cache of links.
        if not is_regular(target) or not target.samefile(source):
            files.copy(source.resolve(), target)
    run.write(folder / RUN_FILE)
    read_by_it.write(folder / inputs.FILE_NAME)
    if origins := run.origins:
        write_json(folder / ORIGINS, origins)
    write_json(folder / LOCK, locked)


def _names(folder: Path) -> list[str]:
    """Return the files in a folder of the run's, by their paths within that."""
    return [f"{folder.name}/{path.name}" for path in folder.glob("*") if is_regular(path)]


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written to; one that is not there yet may be made.

    Raises:
        UserError: it cannot be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        files.probe(existing)
    except OSError as error:
        raise UserError(
            f"cannot be written to ({error.strerror}); valid: a folder of yours",
            key="run.dir",
            value=folder,
        ) from None
