"""Find the architecture's parameters that reproduce the model of a ``config.json``."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from atom.errors import UserError
from atom.plugin import Architecture, ModelParts
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import select
from atom.titan.hugging_face.config import Disagreement, disagreement
from atom.titan.trainer_config import model_parts

_FIELDS = 24
"""Maximum number of fields to fix."""


def settings(
    theirs: Mapping[str, Any], parts: ModelParts, run: Run, host: Host, vocab_size: int
) -> str:
    """Return the overrides that give ``run`` the model of ``theirs``; "" if there are none.

    Each is found by trial: a parameter that accepts the value and makes the export write it.
    """
    found: dict[str, Any] = {}
    aside: set[str] = set()  # fields that no parameter sets, but that others may imply
    for _ in range(_FIELDS):
        problem = _compare(theirs, parts, without=aside)
        if problem is None and _compare(theirs, parts) is not None:
            return ""
        if problem is None:
            return " ".join(f"architecture.{name}={_said(value)}" for name, value in found.items())
        for name, value in _candidates(run, host, problem):
            changed = _with(run, name, value)
            made = _made(changed, host, vocab_size)
            if name not in found and made and _compare(theirs, made, only=problem.field) is None:
                run, parts, found[name] = changed, made, value
                break
        else:
            aside.add(problem.field)
    return ""


def _compare(theirs: Mapping[str, Any], parts: ModelParts, **which: Any) -> Disagreement | None:
    return disagreement(theirs, parts.hf_config or {}, parts.hf_defaults or {}, **which)


def _candidates(run: Run, host: Host, problem: Disagreement) -> Iterator[tuple[str, Any]]:
    """Yield candidate parameters and values."""
    config = select(run, host, training=False)[Architecture].config
    for name, field in type(config).model_fields.items() if config is not None else ():
        if "layers" in name and "layer" not in problem.field:
            continue  # as a layer count, a width would be far too large
        options = list(_options(field.annotation))
        yield from ((name, option) for option in options or [problem.wanted])


def _options(annotation: Any) -> Iterator[Any]:
    """Yield the values of an annotation with few of them."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif annotation is bool:
        yield from (False, True)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _options(part)


def _with(run: Run, name: str, value: Any) -> Run:
    section = run.architecture.model_dump() | {name: value}
    changed = type(run.architecture).model_validate(section)
    return run.model_copy(update={"architecture": changed})


def _made(run: Run, host: Host, vocab_size: int) -> ModelParts | None:
    try:
        return model_parts(select(run, host, training=False), vocab_size, 1)
    except UserError:
        return None


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
