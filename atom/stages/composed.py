"""Complete a recipe with variables, a scale and the overrides of a command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atom.errors import UserError, nearest
from atom.io import yaml_data
from atom.stages.commands import COMMANDS, Command
from atom.stages.declaration import NAME, Recipe, Stage, order, reference

_VARIABLE = re.compile(rf"\$\{{({NAME.pattern})\}}")
_SCALE = "scale"


@dataclass(frozen=True)
class Composed:
    """A recipe without open references.

    Attributes:
        name: of its file.
        origin: its file.
        summary: one line.
        folder: the folder of all stages.
        variables: name -> value.
        stages: name -> stage, in an order in which they can run.
        needs: name -> the stages that it takes from or names the folders of.
        typed: keys of stages that the command line sets: ``STAGE.KEY``.
    """

    name: str
    origin: str
    summary: str
    folder: Path
    variables: dict[str, Any]
    stages: dict[str, Stage]
    needs: dict[str, list[str]]
    typed: frozenset[str] = frozenset()

    def place(self, stage: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / stage

    def command(self, stage: str) -> Command:
        """Return the command of a stage."""
        return COMMANDS[self.stages[stage].command]

    def after(self, stages: Iterable[str]) -> set[str]:
        """Return ``stages`` and all stages that need them."""
        found = set(stages)
        for name in self.stages:  # in order
            if found.intersection(self.needs[name]):
                found.add(name)
        return found

    def before(self, stages: Iterable[str]) -> set[str]:
        """Return ``stages`` and all stages that they need."""
        found = set(stages)
        for name in reversed(self.stages):
            if name in found:
                found.update(self.needs[name])
        return found


def composed(
    recipe: Recipe, name: str, origin: str, folder: Path, overrides: Iterable[str]
) -> Composed:
    """Complete ``recipe``.

    Args:
        recipe: as declared.
        name: of the recipe.
        origin: its file, for errors.
        folder: the folder of all stages, absolute.
        overrides: ``VARIABLE=VALUE``, ``STAGE.KEY=VALUE`` or ``~STAGE.KEY``.

    Raises:
        UserError: a name is unknown, or variables or stages need each other.
    """
    overrides = list(overrides)
    variables, stages = _overridden(recipe, overrides, origin)
    values = _resolved(_scaled(recipe, variables, origin), origin)
    paths = {stage: str(folder / stage) for stage in stages}
    named: dict[str, set[str]] = {stage: set() for stage in stages}

    def fill(value: Any, stage: str, key: str) -> Any:
        if isinstance(value, dict):
            return {k: fill(v, stage, f"{key}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [fill(each, stage, key) for each in value]
        if not isinstance(value, str):
            return value
        known = values | paths
        where = {"key": f"stages.{stage}.{key}", "value": value, "origin": origin}
        for name in _VARIABLE.findall(value):
            if name not in known:
                raise UserError(f"{name} is no variable and no stage; {nearest(name, known)}",
                                **where)  # fmt: skip
            if name in paths:
                named[stage].add(name)
        return _filled(value, known, where)

    filled = {
        name: stage.model_copy(
            update={
                "overrides": fill(stage.overrides, name, "overrides"),
                "options": fill(stage.options, name, "options"),
            }
        )
        for name, stage in stages.items()
    }
    needs = {
        name: list(dict.fromkeys([*(reference(s)[0] for s in stage.sources), *sorted(named[name])]))
        for name, stage in filled.items()
    }
    for stage, before in needs.items():
        if stage in before:
            raise UserError("names itself", key=f"stages.{stage}", origin=origin)
    run = order(filled, needs, origin)
    typed = frozenset(word.lstrip("~+").partition("=")[0] for word in overrides)
    return Composed(
        name, origin, recipe.summary, folder, values, {s: filled[s] for s in run}, needs, typed
    )


def _overridden(
    recipe: Recipe, overrides: Iterable[str], origin: str
) -> tuple[dict[str, Any], dict[str, Stage]]:
    variables: dict[str, Any] = {}
    stages = dict(recipe.stages)
    known = {_SCALE, *recipe.variables, *(k for scale in recipe.scales.values() for k in scale)}
    for word in overrides:
        removes = word.startswith("~")
        key, equals, text = word.removeprefix("~").lstrip("+").partition("=")
        first, dot, rest = key.partition(".")
        if removes == bool(equals) or (removes and not dot):
            raise UserError(
                f"{word} (command line): is no override of a recipe",
                valid="VARIABLE=VALUE, STAGE.KEY=VALUE or ~STAGE.KEY",
            )
        value = None if removes else yaml_data.load(text, word) if text else ""
        if first in stages and dot and rest:
            stages[first] = _with(stages[first], first, rest, value, removes)
        elif not dot and first in known:
            variables[first] = value
        else:
            names = [*known, *(f"{stage}.KEY" for stage in stages)]
            raise UserError(
                f"is no variable and no stage of {origin}; {nearest(first, names)}",
                key=key, value=text, origin="command line",
            )  # fmt: skip
    return variables, stages


def _with(stage: Stage, name: str, key: str, value: Any, removes: bool) -> Stage:
    command = COMMANDS[stage.command]
    if key in command.own:
        raise UserError("is set by the recipe", key=f"{name}.{key}", origin="command line")
    of = "overrides" if command.overridden and key not in command.options else "options"
    kept = {k: v for k, v in getattr(stage, of).items() if k != key}
    if removes and len(kept) == len(getattr(stage, of)):
        raise UserError(
            f"removes nothing; {nearest(key, getattr(stage, of))}", key=f"~{name}.{key}",
            origin="command line",
        )  # fmt: skip
    if not removes:
        kept[key] = value
    return stage.model_copy(update={of: kept})


def _scaled(recipe: Recipe, given: dict[str, Any], origin: str) -> dict[str, Any]:
    declared = recipe.variables | given
    scale = declared.get(_SCALE)
    if scale is None and not recipe.scales:
        return declared
    if scale not in recipe.scales:
        raise UserError(
            f"is no scale; {nearest(str(scale), recipe.scales)}", key=_SCALE, value=scale,
            origin="command line" if _SCALE in given else origin,
        )  # fmt: skip
    return recipe.variables | recipe.scales[scale] | given | {_SCALE: scale}


def _resolved(variables: dict[str, Any], origin: str) -> dict[str, Any]:
    done: dict[str, Any] = {}

    def value(name: str, asked: tuple[str, ...]) -> Any:
        if name in done:
            return done[name]
        if name in asked:
            raise UserError(
                "refers to itself", key=f"variables.{name}", value=variables[name], origin=origin
            )
        found = variables[name]
        if isinstance(found, str):
            where = {"key": f"variables.{name}", "value": found, "origin": origin}
            for other in _VARIABLE.findall(found):
                if other not in variables:
                    raise UserError(f"{other} is no variable; {nearest(other, variables)}", **where)
            others = {other: value(other, (*asked, name)) for other in _VARIABLE.findall(found)}
            found = _filled(found, others, where)
        done[name] = found
        return found

    return {name: value(name, ()) for name in variables}


def _filled(text: str, values: dict[str, Any], where: dict[str, Any]) -> Any:
    """Return ``text`` with values; a text that is one reference alone keeps the value's type."""
    if match := _VARIABLE.fullmatch(text):
        return values[match[1]]

    def put(match: re.Match[str]) -> str:
        value = values[match[1]]
        if isinstance(value, dict | list) or value is None:
            raise UserError(f"{match[1]} is no text and no number", **where)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return _VARIABLE.sub(put, text)


def document(made: Composed) -> str:
    """Return a composed recipe as YAML, for people; the folder of the recipe reads ``FOLDER``."""
    content = {
        "recipe": made.name,
        "variables": made.variables,
        "stages": {
            name: {
                key: value
                for key, value in (
                    ("command", stage.command),
                    ("from", list(stage.sources)),
                    ("overrides", stage.overrides),
                    ("options", stage.options),
                )
                if value
            }
            for name, stage in made.stages.items()
        },
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
