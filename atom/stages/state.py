"""Keep what is known about each stage: what it was run with, and how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from atom.io import json_data
from atom.io.files import make_folder, write_json

FOLDER = ".recipe"

Ended = Literal["running", "submitted", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class Made:
    """What a stage depends on: if none of it has changed, the stage is not run again.

    Attributes:
        declaration: its command, options and overrides.
        inputs: reference -> digest of what it takes.
        code: digest of ATOM's and the plugins' code.
    """

    declaration: dict[str, Any]
    inputs: dict[str, str]
    code: str

    def changes(self, now: Made, *, with_code: bool = True) -> list[str]:
        """Return what differs from ``now``, in words."""
        before, after = _flat(self.declaration), _flat(now.declaration)
        found = [
            f"{key}: {before.get(key, 'nothing')} → {after.get(key, 'nothing')}"
            for key in dict.fromkeys([*before, *after])
            if before.get(key, ...) != after.get(key, ...)
        ]
        for name in dict.fromkeys([*self.inputs, *now.inputs]):
            if self.inputs.get(name) != now.inputs.get(name):
                found.append(f"{name} is another one")
        if with_code and self.code != now.code:
            found.append("the code of ATOM or of a plugin")
        return found


@dataclass(frozen=True)
class Record:
    """The last run of a stage.

    Attributes:
        made: what it was run with.
        state: how it ended; ``running`` of a recipe that nobody runs: it was killed;
            ``submitted``: a launcher has it.
        began, seconds: time of the start, seconds since 1970, and its length over all tries.
        said: the last line of a failure.
    """

    made: Made
    state: Ended
    began: float
    seconds: float = 0.0
    said: str = ""
    arguments: list[str] = field(default_factory=list)


def read(folder: Path, stage: str) -> Record | None:
    """Return the record of a stage; None if there is none that can be read."""
    try:
        content = json_data.read(_file(folder, stage), below=folder)
        made = Made(**content.pop("made"))
        record = Record(made, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    plain = isinstance(made.declaration, dict) and isinstance(made.inputs, dict)
    numbers = all(isinstance(n, int | float) for n in (record.began, record.seconds))
    return record if plain and numbers and record.state in get_args(Ended) else None


def write(folder: Path, stage: str, record: Record) -> None:
    """Write the record of a stage."""
    make_folder(folder / FOLDER)
    write_json(_file(folder, stage), asdict(record))


def remove(folder: Path, stage: str) -> None:
    """Forget a stage."""
    _file(folder, stage).unlink(missing_ok=True)


def _file(folder: Path, stage: str) -> Path:
    return folder / FOLDER / f"{stage}.json"


def _flat(declaration: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in declaration.items():
        if isinstance(value, dict):
            found |= value
        else:
            found[name] = value
    return found
