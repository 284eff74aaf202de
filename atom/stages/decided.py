"""Decide which stages of a recipe run, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from atom.errors import UserError, nearest
from atom.run_dir import checkpoint
from atom.stages import digests, state
from atom.stages.arguments import step_of
from atom.stages.commands import WEIGHTS
from atom.stages.composed import Composed
from atom.stages.declaration import reference
from atom.stages.state import Made, Record


@dataclass(frozen=True)
class Decision:
    """What becomes of a stage.

    Attributes:
        state: ``finished`` and unchanged; ``changed`` since it finished; ``new``; ``failed``,
            ``stopped`` or ``interrupted``; ``submitted`` to a launcher; ``waits`` for a stage that
            it needs.
        why: the reason in words.
        record: of its last run.
    """

    state: str
    why: str = ""
    record: Record | None = None

    @property
    def runs(self) -> bool:
        """Whether the stage would be run."""
        return self.state != "finished"


def made_of(made: Composed, stage: str, code: str) -> Made:
    """Return what a stage depends on now; the stages that it needs are finished.

    Raises:
        UserError: a checkpoint that it takes does not exist.
    """
    declared = made.stages[stage]
    folder = str(made.folder)
    inputs = {}
    references = {source: reference(source) for source in declared.sources}
    references |= {n: (n, None) for n in made.needs[stage] if n not in
                   {of for of, _ in references.values()}}  # fmt: skip
    for source, (of, which) in references.items():
        makes, step = made.command(of).makes, None
        if makes == WEIGHTS:
            step = step_of(made.place(of), which, source)
        inputs[source] = digests.of_output(made.place(of), makes, step)
    declaration = {
        "command": declared.command,
        "from": ", ".join(declared.sources),
        "overrides": _relative(declared.overrides, folder),
        "options": _relative(declared.options, folder),
    }
    return Made(declaration, inputs, code)


def decide(
    made: Composed, code: str = "", *, with_code: bool = False, again: Iterable[str] = ()
) -> dict[str, Decision]:
    """Return what becomes of each stage if the recipe runs now.

    Args:
        made: the recipe.
        code: digest of the code.
        with_code: whether other code makes a stage run again.
        again: stages that run again in any case.
    """
    found: dict[str, Decision] = {}
    for stage in made.stages:
        found[stage] = decision(made, stage, code, found, with_code=with_code, again=again)
    return found


def decision(
    made: Composed,
    stage: str,
    code: str,
    others: dict[str, Decision],
    *,
    with_code: bool = True,
    again: Iterable[str] = (),
) -> Decision:
    """Return what becomes of a stage, given what becomes of those that it needs."""
    record = state.read(made.folder, stage)
    waiting = [need for need in made.needs[stage] if others[need].runs]
    if waiting:
        return Decision("waits", f"for {', '.join(waiting)}", record)
    if record is None:
        return Decision("new")
    now = made_of(made, stage, code)
    if changes := record.made.changes(now, with_code=with_code):
        return Decision("changed", "; ".join(changes), record)
    if stage in again:
        return Decision("changed", "asked for", record)
    if record.state == "running":
        return Decision("interrupted", "its process was killed", record)
    if record.state != "finished":
        return Decision(record.state, record.said, record)
    if lost := _lost(made, stage):
        return Decision("changed", lost, record)
    return Decision("finished", "", record)


def chosen(made: Composed, only: list[str], begin: list[str]) -> set[str]:
    """Return the stages that ``--only`` and ``--from`` choose.

    Raises:
        UserError: a name is unknown.
    """
    for option, names in (("--only", only), ("--from", begin)):
        for name in names:
            if name not in made.stages:
                raise UserError(
                    f"is no stage; {nearest(name, made.stages)}", key=option, value=name
                )
    found = set(made.stages)
    if begin:
        found = made.after(begin)
    return found & set(only) if only else found


def check_chosen(made: Composed, decisions: dict[str, Decision], names: set[str]) -> None:
    """Refuse to run stages without the stages that they need.

    Raises:
        UserError: one is neither finished nor chosen.
    """
    for name in names:
        for need in made.needs[name]:
            if need not in names and decisions[need].state != "finished":
                raise UserError(
                    f"stage {name} needs {need}, which is {decisions[need].state}",
                    valid=f"choose {need} too",
                )


def _lost(made: Composed, stage: str) -> str:
    """Return a sentence if what the stage made is gone."""
    place, command = made.place(stage), made.command(stage)
    if not place.is_dir():
        return f"{place} is gone"
    if command.makes == WEIGHTS and not checkpoint.in_own_format(place / checkpoint.FOLDER):
        return f"{place} has no checkpoint"
    return ""


def _relative(values: dict[str, object], folder: str) -> dict[str, object]:
    """Return values in which paths of the recipe's folder do not depend on where it lies."""

    def value(found: object) -> object:
        if isinstance(found, str):
            return found.replace(folder, "FOLDER")
        if isinstance(found, dict):
            return {key: value(below) for key, below in found.items()}
        return [value(each) for each in found] if isinstance(found, list) else found

    return {key: value(found) for key, found in values.items()}
