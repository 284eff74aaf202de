"""Write the command line of a stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from atom.compose.command_line import quoted
from atom.errors import UserError
from atom.recipe.run import read
from atom.run_dir import checkpoint, kept
from atom.run_dir.folder import RUN_FILE
from atom.stages.commands import DATA
from atom.stages.composed import Composed
from atom.stages.declaration import reference

_PLAIN = re.compile(r"[\w./:@+-]+")


def arguments(made: Composed, stage: str) -> list[str]:
    """Return the arguments of ``atom`` for a stage; what it takes from must be finished.

    Raises:
        UserError: a checkpoint that it takes does not exist.
    """
    declared, command = made.stages[stage], made.command(stage)
    words = [*command.words, *command.fixed]
    runs, overrides = [], dict(declared.overrides)
    for source in declared.sources:
        of, which = reference(source)
        if command.overridden:
            overrides = _taken(made, of, which) | overrides
            continue
        place = made.place(of)
        newest = command.step is None and "steps" not in declared.options
        if which is not None or newest:
            step = step_of(place, which, source)
            runs += [f"{place}@{step}"] if command.step is None else [str(place), command.step,
                                                                        str(step)]  # fmt: skip
        else:
            runs.append(str(place))
    words += runs
    for name, value in declared.options.items():
        words += _option(name, value)
    words += [f"{key}={_value(value)}" for key, value in overrides.items()]
    if command.out is not None:
        out = str(made.place(stage))
        words += [f"{command.out}{out}"] if command.out.endswith("=") else [command.out, out]
    return words


def _taken(made: Composed, of: str, which: str | None) -> dict[str, Any]:
    place = made.place(of)
    if made.command(of).makes == DATA:
        return {"dataset": "prepared", "dataset.path": str(place)}
    if which is not None:
        step = step_of(place, which, f"{of}@{which}")
        place = checkpoint.step_folder(place / checkpoint.FOLDER, step)
    return {"checkpoint.initial_load": str(place)}


def step_of(run: Path, which: str | None, shown: str) -> int:
    """Return the step of the checkpoint that a reference names.

    Args:
        run: the run folder.
        which: ``best``, a step, or None for the newest.
        shown: the reference, for errors.

    Raises:
        UserError: there is no such checkpoint.
    """
    steps = checkpoint.in_own_format(run / checkpoint.FOLDER)
    if not steps:
        raise UserError(f"{run} has no checkpoint", key="from", value=shown)
    if which is None:
        return steps[-1]
    if which != "best":
        if int(which) not in steps:
            listed = ", ".join(map(str, steps))
            raise UserError("has no such checkpoint", key="from", value=shown, valid=listed)
        return int(which)
    declared = read(run / RUN_FILE)
    best_of = declared.checkpoint.keep_best_of or next(iter(declared.validation.sets), None)
    best = kept.Kept(latest=1, best_of=best_of).lowest(steps, run)
    if best is None:
        raise UserError("has no losses to choose by", key="from", value=shown)
    return best


def _option(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, list):
        return [word for each in value for word in _option(name, each)]
    return [f"--{name}={value}"]


def _value(value: Any) -> str:
    """Return a value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{{','.join(f'{_value(k)}:{_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, str) and not _PLAIN.fullmatch(value) and "${" not in value:
        return quoted(value)
    return str(value)
