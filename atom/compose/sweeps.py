"""Check the objective of a sweep, give it to the sweeper, and tidy up after an empty sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, flag_override

from atom.compose.averages import averaging
from atom.compose.repairs import SWEEPER
from atom.errors import UserError
from atom.io.files import read_text, write_text
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.run_dir import chosen, objective
from atom.run_dir.folder import RUN_FILE

KEY = "direction"
"""Key of the direction in the section of a sweeper."""

RECORD = "multirun.yaml"
"""File that Hydra's own sweeper writes into the sweep folder before its first run."""


def check(run: Run, host: Host) -> None:
    """Refuse an objective, and numbers to show, that runs do not measure.

    Raises:
        UserError: names the numbers that they measure.
    """
    sets = [*run.validation.names, *run.validation.averaged(averaging(run, host))]
    objective.check(run, sets)
    for name in run.metrics.show:
        chosen.check(run, "metrics.show", name, sets, value=run.metrics.show)


@contextmanager
def tidied(idle: Callable[[], bool]) -> Iterator[None]:
    """Restore the folder of a sweep that was refused, had already finished, or was a dry run.

    Args:
        idle: returns, after a sweep, whether none of its runs can have written anything.
    """
    original = SWEEPER.original()

    def instantiate(self: Plugins, **arguments: Any) -> Any:
        _direct(arguments["config"])
        sweeper = original(self, **arguments)
        place = Path(arguments["config"].hydra.sweep.dir)
        sweeper.sweep = partial(_sweep, sweeper.sweep, place, idle)
        return sweeper

    with SWEEPER.replaced(instantiate):
        yield


def _direct(config: DictConfig) -> None:
    """Give ``sweep.direction`` to a sweeper that has a direction, such as Optuna's.

    Raises:
        UserError: the user has set another direction, or the sweeper takes none.
    """
    wanted = str(OmegaConf.select(config, "sweep.direction", default="minimize"))
    section = config.hydra.sweeper
    if KEY not in section:
        if wanted != "minimize" and not str(section._target_).endswith(".BasicSweeper"):
            raise UserError(
                f"is not taken over by {section._target_.rpartition('.')[2]}, which has settings "
                "of its own",
                valid="minimize",
                key="sweep.direction",
                value=wanted,
            )
        return
    given = section.direction
    given = getattr(given, "name", given)
    if given not in ("minimize", wanted):
        raise UserError(
            f"is not sweep.direction={wanted}, by which `atom compare` ranks the runs",
            valid="sweep.direction, and this left out",
            key="hydra.sweeper.direction",
            value=given,
        )
    with flag_override(section, ["struct", "readonly"], [False, False]):
        section.direction = wanted


def _sweep(
    sweep: Callable[..., Any], place: Path, idle: Callable[[], bool], **arguments: Any
) -> Any:
    record, runs, folders = _text(place / RECORD), _runs(place), _folders(place)
    new = [each for each in (place, *place.parents) if not each.exists()]
    try:
        return sweep(**arguments)
    finally:
        for folder in _folders(place) - folders:
            _remove(folder)
        if _runs(place) == runs and record is not None:
            write_text(place / RECORD, record)
        elif _runs(place) == runs and idle():
            (place / RECORD).unlink(missing_ok=True)
            for folder in new:
                _remove(folder)


def _text(path: Path) -> str | None:
    return read_text(path) if path.is_file() else None


def _runs(place: Path) -> dict[Path, tuple[int, int]]:
    """Return a fingerprint that shows whether a run has been written again."""
    found = {path: path.stat() for path in place.glob(f"*/{RUN_FILE}")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def _folders(place: Path) -> set[Path]:
    return {path for path in place.glob("*") if path.is_dir()}


def _remove(folder: Path) -> None:
    with suppress(OSError):  # it is not empty
        folder.rmdir()
