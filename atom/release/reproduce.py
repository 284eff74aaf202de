"""Train segments of a release again, and compare them bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from atom.errors import RunError, UserError
from atom.io import new_folder
from atom.io.process import call
from atom.release import bundle, replay, segments
from atom.release.bundle import Bundle, Saved
from atom.release.comparison import Compared, compare
from atom.release.segments import Segment
from atom.run_dir.folder import RUN_FILE


@dataclass(frozen=True)
class Reproduction:
    """The comparisons of segments, and how many the release has."""

    compared: list[Compared]
    all: int

    @property
    def equal(self) -> bool:
        """Whether all segments that were trained again are equal."""
        return all(each.equal for each in self.compared)

    @property
    def level(self) -> str | None:
        """``R2`` if all segments are equal, ``R1`` if those trained are; None otherwise."""
        if not self.equal:
            return None
        return "R2" if len(self.compared) == self.all else "R1"

    @property
    def first(self) -> Compared | None:
        """The first segment that differs."""
        return next((each for each in self.compared if not each.equal), None)

    def to_json(self) -> dict[str, Any]:
        """Return the result as data."""
        first = self.first
        return {
            "level": self.level,
            "equal": self.equal,
            "first_difference": None
            if first is None
            else {"segment": first.segment.number} | (first.first or {"failed": first.failed}),
            "segments": [each.to_json() for each in self.compared],
            "of": self.all,
        }


def reproduce(
    folder: Path,
    wanted: str,
    work: Path,
    *,
    overrides: Sequence[str] = (),
    python: str | None = None,
) -> Reproduction:
    """Train segments again, each in a process and a run folder of its own.

    Args:
        folder: the release.
        wanted: ``all``, a number, or numbers ``A-B``.
        work: the folder for the run folders; new or empty.
        overrides: ``KEY=VALUE`` of the run that are different here, such as where the data is.
        python: the interpreter of the environment; None for this one.

    Raises:
        UserError: it is no release, or it has no such segment.
    """
    released = bundle.read(folder)
    found = segments.of(released)
    asked = segments.chosen(found, wanted)
    new_folder.check(work, "--work")
    work.mkdir(parents=True, exist_ok=True)
    compared = []
    for segment in asked:
        print(f"{segment}: training", file=sys.stderr)
        compared.append(_again(released, segment, work.absolute(), overrides, python))
        print(f"{segment}: {_words(compared[-1])}", file=sys.stderr)
    return Reproduction(compared, len(found))


def _again(
    released: Bundle, segment: Segment, work: Path, overrides: Sequence[str], python: str | None
) -> Compared:
    if segment.problem is not None:
        return Compared(segment, equal=False, failed=segment.problem)
    folder = released.folder.absolute()
    place = work / f"segment-{segment.number}"
    initial = None if segment.begin is not None else _initial(released, segment)
    plan = work / f"segment-{segment.number}.json"
    replay.write_plan(
        plan,
        settings=str(folder / segment.end.folder / RUN_FILE),
        place=str(place),
        begin=None if segment.begin is None else str(folder / segment.begin.folder),
        step=segment.first,
        until=segment.end.step,
        branched=segment.branched,
        initial=None if initial is None else str(folder / initial.folder),
        initial_step=0 if initial is None else initial.step,
        overrides=list(overrides),
    )
    log = work / f"segment-{segment.number}.txt"
    if (failed := _run(plan, log, python)) is not None:
        return Compared(segment, equal=False, failed=failed)
    return compare(released, segment, place)


def _run(plan: Path, log: Path, python: str | None) -> str | None:
    """Run a plan with its output in ``log``; return why it failed, or None."""
    if python is None:
        try:
            call(partial(replay.logged, plan, log))
        except UserError as error:
            return error.sentence()
        except RunError as error:
            return str(error)
        return None
    with log.open("wb") as output:
        done = subprocess.run(
            [python, "-P", "-m", "atom.release.replay", str(plan)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if not done.returncode:
        return None
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it was ended"


def _initial(released: Bundle, segment: Segment) -> Saved | None:
    """Return the released checkpoint with the initial weights of a run, or None."""
    if segment.stage.origin is None:
        return None
    name, step = segment.stage.origin
    for stage in released.stages:
        for saved in stage.checkpoints:
            if (stage.name, saved.step) == (name, step):
                return saved
    raise UserError(f"the release lacks the checkpoint of {name}, step {step}")


def _words(compared: Compared) -> str:
    if compared.failed is not None:
        return f"not trained: {compared.failed}"
    if compared.equal:
        return f"equal, bit for bit ({compared.steps} logged steps, {compared.tensors} tensors)"
    where = ", ".join(f"{name} {value}" for name, value in (compared.first or {}).items())
    return f"differs: {where}"
