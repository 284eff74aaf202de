"""Check a whole recipe before any of it runs: each stage's arguments, and a dry run of each run.

A stage that takes from one that has not run yet cannot read its folder. For the check, a tokenizer
or a dataset in such a folder is replaced by the one of the stage that will write it, and initial
weights are left out: the models of both stages are compared instead.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from atom.errors import UserError
from atom.stages.arguments import arguments
from atom.stages.commands import DATA, WEIGHTS
from atom.stages.composed import Composed
from atom.stages.declaration import reference

_AT_ONCE = 4
_TYPED = re.compile(r"(?P<key>[^\s=]+)(?P<value>=.*?)? \(command line\):")


class CheckError(UserError):
    """Mistakes of several stages, a sentence each."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences

    def sentence(self) -> str:
        """Return one line for each stage."""
        return "\natom: ".join(self.sentences)


def check(
    made: Composed,
    stages: Iterable[str],
    tell: Callable[[str], None],
    parse: Callable[[str, list[str]], None],
) -> None:
    """Check the stages that will run.

    Args:
        made: the recipe.
        stages: their names.
        tell: shows a line of progress.
        parse: parses the arguments of a command, and raises a ``UserError`` if they are invalid.

    Raises:
        CheckError: stages would fail.
    """
    names = [name for name in made.stages if name in set(stages)]
    _check_models(made, names)
    _refuse(_mistake(made, name, parse) for name in names)
    overridden = [name for name in names if made.command(name).overridden]
    with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as threads:
        _refuse(threads.map(lambda name: _dry_run(made, name, tell), overridden))


def _refuse(found: Iterable[str | None]) -> None:
    if problems := [problem for problem in found if problem]:
        raise CheckError(problems)


def as_if_made(made: Composed, name: str) -> Composed:
    """Return the recipe with a stage that takes nothing from folders that do not exist yet."""
    stage = made.stages[name]
    overrides = dict(stage.overrides)
    for key in ("tokenizer.path", "dataset.path"):
        before = _stage_of(made, overrides.get(key))
        if before is not None and not made.place(before).exists():
            section = key.partition(".")[0]
            chosen = _section(made, before, section)
            if section == "tokenizer" and overrides.get("objective", "pretrain") != "pretrain":
                chosen = {"tokenizer": "bytes"}  # records train no tokenizer
            overrides = _without(overrides, section) | chosen
    sources = []
    for source in stage.sources:
        of, _ = reference(source)
        if made.place(of).exists():
            sources.append(source)
        elif made.command(of).makes == DATA:
            own = {
                key: value
                for key, value in overrides.items()
                if key.startswith("dataset.") and key != "dataset.path"
            }
            overrides = _without(overrides, "dataset") | _section(made, of, "dataset") | own
    changed = stage.model_copy(update={"sources": tuple(sources), "overrides": overrides})
    return replace(made, stages=made.stages | {name: changed})


def _mistake(made: Composed, name: str, parse: Callable[[str, list[str]], None]) -> str | None:
    """Return a sentence about arguments that the command of a stage does not take."""
    command, stage = made.command(name), made.stages[name]
    try:
        if not command.overridden:
            parse(stage.command, _parsable(made, name))
        elif stage.command == "data prepare":
            parse(stage.command, arguments(made, name)[len(command.words) :])
    except UserError as error:
        return f"stage {name}: {error.sentence()}"
    return None


def _dry_run(made: Composed, name: str, tell: Callable[[str], None]) -> str | None:
    """Return a sentence if the dry run of a stage with overrides fails."""
    try:
        words = arguments(as_if_made(made, name), name)
        if made.stages[name].command == "data prepare":
            words = ["train", *words[len(words) - len(made.stages[name].overrides) - 2 : -2]]
        tell(f"checking {name}")
        output(made, name, [*words, "dry_run=true"])
    except UserError as error:
        return f"stage {name}: {error.sentence()}"
    return None


def output(made: Composed, name: str, words: list[str]) -> str:
    """Return what ``atom`` prints for a stage.

    Raises:
        UserError: it fails; the error names where the user has set a key.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "atom", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(_with_origin(lines[-1].removeprefix("atom: "), made, name))
    return done.stdout


def _with_origin(sentence: str, made: Composed, name: str) -> str:
    """Return a sentence about a command line with the origin that the user knows."""
    match = _TYPED.match(sentence)
    if match is None:
        return sentence
    key = f"{name}.{match['key'].lstrip('+~')}"
    origin = "command line" if key in made.typed else made.origin
    return f"{key}{match['value']} ({origin}):{sentence[match.end() :]}"


def _parsable(made: Composed, name: str) -> list[str]:
    """Return the arguments of a stage with the folders of runs that may not exist yet."""
    command, stage = made.command(name), made.stages[name]
    places = [str(made.place(reference(source)[0])) for source in stage.sources]
    bare = replace(made, stages=made.stages | {name: stage.model_copy(update={"sources": ()})})
    return [*arguments(bare, name)[len(command.words) :], *places]


def _check_models(made: Composed, names: list[str]) -> None:
    """Refuse a run that begins from the weights of another architecture.

    Raises:
        UserError: it differs in an override of ``architecture``.
    """
    for name in names:
        stage = made.stages[name]
        if stage.command != "train":
            continue
        for source in stage.sources:
            of = _trained(made, reference(source)[0])
            if of is None:
                continue
            theirs, own = _section(made, of, "architecture"), _section(made, name, "architecture")
            if theirs.get("architecture") != own.get("architecture"):
                raise UserError(
                    f"stage {name}: takes the weights of {of}, which has "
                    f"architecture={theirs.get('architecture')}",
                    valid=f"architecture={theirs.get('architecture')}",
                    key="architecture", value=own.get("architecture"), origin=made.origin,
                )  # fmt: skip


def _trained(made: Composed, name: str) -> str | None:
    """Return the stage that has trained the weights of a stage; None if it makes none."""
    while made.command(name).makes == WEIGHTS and made.stages[name].command != "train":
        name = reference(made.stages[name].sources[0])[0]
    return name if made.stages[name].command == "train" else None


def _stage_of(made: Composed, path: object) -> str | None:
    """Return the stage whose folder a path is, or is below."""
    if not isinstance(path, str):
        return None
    inside = Path(path)
    if not inside.is_relative_to(made.folder) or inside == made.folder:
        return None
    name = inside.relative_to(made.folder).parts[0]
    return name if name in made.stages else None


def _section(made: Composed, name: str, section: str) -> dict[str, object]:
    """Return the overrides of a section of the stage that first sets it: ``name``, or those it
    names the folders of."""
    stage = made.stages[name]
    found = {k: v for k, v in stage.overrides.items() if k.partition(".")[0] == section}
    before = _stage_of(made, found.get(f"{section}.path"))
    if before is not None and not made.place(before).exists():
        return _section(made, before, section)
    if not found and stage.command == "average":
        return _section(made, reference(stage.sources[0])[0], section)
    return found


def _without(overrides: dict[str, object], section: str) -> dict[str, object]:
    return {key: value for key, value in overrides.items() if key.partition(".")[0] != section}
