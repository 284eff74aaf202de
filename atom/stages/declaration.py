"""Declare a recipe: variables, scales, and stages that take from each other."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atom.errors import UserError, nearest, shown
from atom.stages.commands import COMMANDS

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(rf"({NAME.pattern})(?:@(best|[1-9][0-9]{{0,18}}))?")

_MOST_STAGES = 1000

_RESOLVER = re.compile(r"\$\{(?![A-Za-z_][\w.]*\})[^}]*\}?")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_USERS = ("launcher", "plugins", "hydra")
"""Sections that act as code or say what is trusted: a user sets them, and no file of a recipe."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Stage(_Strict):
    """One command of a recipe.

    Attributes:
        command: a command of ATOM: ``train``, ``data prepare``, ``average``, …
        sources: the stages that it takes from: ``STAGE``, ``STAGE@best`` or ``STAGE@STEP``.
        overrides: keys of the run that it trains, or of the data that it prepares.
        options: options of the command, without ``--``.
        summary: one line for people.
    """

    command: str
    sources: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field((), alias="from")
    overrides: dict[str, Any] = {}
    options: dict[str, Any] = {}
    summary: str = ""


class Recipe(_Strict):
    """A recipe, as a file declares it.

    Attributes:
        summary: one line for people.
        variables: name -> value, for ``${NAME}`` in stages.
        scales: name -> variables of a scale; the variable ``scale`` chooses one.
        stages: name -> stage.
    """

    summary: str = ""
    variables: dict[str, Any] = {}
    scales: dict[str, dict[str, Any]] = {}
    stages: dict[str, Stage] = Field(min_length=1, max_length=_MOST_STAGES)


def parsed(content: Any, origin: str) -> Recipe:
    """Return the recipe of a file.

    Args:
        content: the YAML document.
        origin: the file, for errors.

    Raises:
        UserError: it is no recipe.
    """
    if not isinstance(content, dict):
        raise UserError(f"{origin} is no recipe", valid="a mapping with stages")
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _mistake(error, origin) from None
    for name in (*recipe.variables, *recipe.stages, *recipe.scales):
        if not NAME.fullmatch(str(name)):
            raise UserError(
                "is no name", valid="letters, digits and _", key="recipe", value=name, origin=origin
            )
    if both := sorted(recipe.variables.keys() & recipe.stages.keys()):
        raise UserError("is a variable and a stage", key="recipe", value=both[0], origin=origin)
    check_references([recipe.variables, recipe.scales], "variables", origin)
    for name, stage in recipe.stages.items():
        _check(name, stage, recipe, origin)
    return recipe


def reference(text: str) -> tuple[str, str | None]:
    """Split ``STAGE@best`` or ``STAGE@STEP`` into a stage and a checkpoint; None: the newest.

    Raises:
        ValueError: it is no reference.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return match[1], match[2]


def _check(name: str, stage: Stage, recipe: Recipe, origin: str) -> None:
    where = f"stages.{name}"
    command = COMMANDS.get(stage.command)
    if command is None:
        raise UserError(
            f"is no command of a stage; {nearest(stage.command, COMMANDS)}",
            key=f"{where}.command", value=stage.command, origin=origin,
        )  # fmt: skip
    if stage.overrides and not command.overridden:
        raise UserError(
            f"{stage.command} takes no overrides", valid=f"{where}.options",
            key=f"{where}.overrides", value=stage.overrides, origin=origin,
        )  # fmt: skip
    for of, values in (("overrides", stage.overrides), ("options", stage.options)):
        for key, value in values.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise UserError("is no key", key=f"{where}.{of}", value=key, origin=origin)
            if key.partition(".")[0] in _USERS:
                raise UserError(
                    "is the user's: no file of a recipe sets it",
                    valid=f"atom recipe run NAME {name}.{key}=VALUE",
                    key=f"{where}.{of}.{key}", origin=origin,
                )  # fmt: skip
            check_references(value, f"{where}.{of}.{key}", origin)
    if own := sorted(command.own & (stage.overrides.keys() | stage.options.keys())):
        raise UserError("is set by the recipe", key=f"{where}.{own[0]}", origin=origin)
    for source in stage.sources:
        at: dict[str, Any] = {"key": f"{where}.from", "value": source, "origin": origin}
        try:
            of, checkpoint = reference(source)
        except ValueError:
            raise UserError("is no stage", valid="STAGE, STAGE@best or STAGE@STEP", **at) from None
        if of not in recipe.stages:
            raise UserError(f"is no stage; {nearest(of, recipe.stages)}", **at)
        made = COMMANDS.get(recipe.stages[of].command)
        if made is not None and made.makes not in command.takes:
            kinds = " or ".join(command.takes) or "nothing"
            raise UserError(
                f"makes {made.makes or 'nothing to take'}, and {stage.command} takes {kinds}", **at
            )
        if checkpoint is not None and (made is None or made.makes != "weights"):
            raise UserError("has no checkpoints", valid=of, **at)
    least, most = command.sources
    if not least <= len(stage.sources) <= most:
        valid = f"{least} stage{'s' * (least != 1)}" if least == most else f"at least {least}"
        if least < most < _MOST_STAGES:
            valid = f"{least} to {most} stages"
        raise UserError(key=f"{where}.from", value=list(stage.sources), origin=origin, valid=valid)


def check_references(value: Any, key: str, origin: str) -> None:
    """Refuse references that run a resolver, such as ``${oc.env:NAME}``.

    Raises:
        UserError: there is one in ``value``.
    """
    if isinstance(value, dict):
        value = [*value, *value.values()]
    for each in value if isinstance(value, list) else ():
        check_references(each, key, origin)
    if isinstance(value, str) and (match := _RESOLVER.search(value)):
        raise UserError(
            f"{match[0]} is no name", valid="${VARIABLE}, ${STAGE} or ${KEY}", key=key,
            value=value, origin=origin,
        )  # fmt: skip


def order(stages: dict[str, Stage], needs: dict[str, list[str]], origin: str) -> list[str]:
    """Return the stages so that each comes after those that it needs, otherwise as declared.

    Raises:
        UserError: stages need each other.
    """
    found: list[str] = []
    left = list(stages)
    while left:
        ready = next((name for name in left if all(need in found for need in needs[name])), None)
        if ready is None:
            raise UserError(
                f"the stages {', '.join(left)} need each other", key="stages", origin=origin
            )
        found.append(ready)
        left.remove(ready)
    return found


def _mistake(error: ValidationError, origin: str) -> UserError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "recipe"
    value = first.get("input", ...)
    if first["type"] == "extra_forbidden":
        fields = Stage if first["loc"][0] == "stages" else Recipe
        names = [field.alias or name for name, field in fields.model_fields.items()]
        return UserError(
            f"is no key of a recipe; {nearest(str(first['loc'][-1]), names)}", key=key,
            origin=origin,
        )  # fmt: skip
    if first["type"] == "missing":
        return UserError("is required", key=key, origin=origin)
    words = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    short = value if len(shown(value)) < 200 else ...
    return UserError(key=key, value=short, origin=origin, valid=words)
