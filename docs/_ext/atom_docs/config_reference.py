"""``{config-reference}``: every key of a run, from the code that validates it.

ATOM's own keys come from :class:`atom.recipe.run.Run`, engine keys from torchtitan's dataclasses,
and parameters of components from the config models of the installed plugins.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from atom.errors import shown
from atom.recipe.components import KIND
from atom.recipe.ranges import ENGINE_RANGES, Range
from atom.recipe.run import Run
from atom.recipe.training_sections import ENGINE_SECTIONS, SECTIONS
from atom.registry.host import Host, resolve
from atom_docs.nodes import definitions, paragraphs, section

Entry = tuple[str, str, str]
"""Key, type and default, description."""


class ConfigReference(SphinxDirective):
    """A reference of keys; the argument is ``run``, ``training`` or ``components``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        sections = {"run": _own, "training": _training, "components": _components}
        return list(sections[self.arguments[0]]())


def _own() -> Iterator[nodes.Node]:
    values = []
    for name, field in Run.model_fields.items():
        models = models_in(field.annotation)
        # A section can have keys of its own beside the name of a component.
        plain = all(set(model.model_fields) == {"name"} for model in models)
        of_kind = name in KIND and KIND[name].chosen in ("one", "many")
        if (of_kind and plain) or name in (*SECTIONS, *ENGINE_SECTIONS, "resolved"):
            continue
        if not models:
            values.append(_pydantic_entry(name, field))
            continue
        found = section(name, f"config-{name}")
        for model in models:
            if len(models) > 1:
                words = f"{name}.name={model.model_fields['name'].default}"
                found += nodes.paragraph("", "", nodes.literal(words, words), nodes.Text(":"))
            found += paragraphs(model.__doc__ or "")
            found += definitions(pydantic_entries(model, name))
        yield found
    found = section("device, kernels, …", "config-values")
    found += definitions(values)
    yield found


def _training() -> Iterator[nodes.Node]:
    for key, schemas in torchtitan_schemas().items():
        found = section(key, f"config-{key}")
        if (model := SECTIONS.get(key)) is not None:
            found += paragraphs(model.__doc__ or "")
            found += definitions(pydantic_entries(model, key))
            found += nodes.paragraph("", "Engine:")
        for mode, schema in schemas.items():
            if mode:
                words = f"{key}.mode={mode}"
                found += nodes.paragraph("", "", nodes.literal(words, words), nodes.Text(" has:"))
            entries = dataclass_entries(schema, key) if schema is not None else []
            found += definitions(entries) if entries else nodes.paragraph("", "No keys.")
        yield found


def _components() -> Iterator[nodes.Node]:
    for component in Host.load().components:
        reference = component.declaration.config
        if reference is None:
            continue
        kind = component.declaration
        key = f"{kind.section}.KEY" if kind.chosen == "many" else kind.section
        found = section(f"{key}.name={component.name}", f"config-{kind.kind}-{component.name}")
        found += nodes.paragraph(
            "",
            f"{component.summary[:1].upper()}{component.summary[1:]} ({component.plugin.package}).",
        )
        entries = pydantic_entries(resolve(reference, component), key)
        found += definitions(entries) if entries else nodes.paragraph("", "No parameters.")
        yield found


def torchtitan_schemas() -> dict[str, dict[str, type | None]]:
    """Return section -> mode -> dataclass; the mode is ``""`` if a section has one dataclass."""
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.translate import ACTIVATION_CHECKPOINT, CONFIGS

    schemas: dict[str, dict[str, type | None]] = {n: {"": c} for n, c in CONFIGS.items()}
    schemas["activation_checkpoint"] = dict(ACTIVATION_CHECKPOINT)
    return schemas


def pydantic_entries(model: type[BaseModel], prefix: str) -> list[Entry]:
    """Return the keys of a pydantic model, with their type, default and description."""
    return [_pydantic_entry(f"{prefix}.{name}", f) for name, f in model.model_fields.items()]


def dataclass_entries(schema: type, prefix: str) -> list[Entry]:
    """Return the engine's own keys of a dataclass, with the texts below its fields."""
    from atom.recipe.defaults import ENGINE

    hints = typing.get_type_hints(schema)
    texts: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if dataclasses.is_dataclass(owner):
            found = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs()
            texts |= {
                name: "\n".join(lines)
                for (qualified, name), lines in found.items()
                if qualified == owner.__qualname__
            }
    return [
        (
            f"{prefix}.{field.name}",
            _classified(hints[field.name], _dataclass_default(field)),
            _with_range(texts.get(field.name, ""), f"{prefix}.{field.name}"),
        )
        for field in dataclasses.fields(schema)
        if f"{prefix}.{field.name}" in ENGINE
    ]


def _with_range(text: str, key: str) -> str:
    """Return torchtitan's text, followed by the range that ATOM accepts."""
    valid = ENGINE_RANGES.get(key)
    return text if valid is None else f"{text.rstrip()}\n\nValid: {valid}."


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models in a type such as ``Optimizer`` or ``Resolved | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType, typing.Annotated):
        return []
    return [model for one in typing.get_args(annotation) for model in models_in(one)]


def _pydantic_entry(key: str, field: Any) -> Entry:
    default = field.get_default(call_default_factory=True)
    return (
        key,
        _classified(field.annotation, ... if default is PydanticUndefined else default),
        _described(field),
    )


def _described(field: Any) -> str:
    """Return a field's description, followed by its range."""
    valid = [f"valid: {each}" for each in field.metadata if isinstance(each, Range)]
    return "; ".join([(field.description or "").strip(), *valid])


def _dataclass_default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ...


def _classified(annotation: Any, default: Any) -> str:
    if default is ...:
        return f"{_spelled(annotation)}, required"
    value = f"{default:g}" if isinstance(default, float) else shown(default)
    if isinstance(default, dict | list | tuple):
        data = list(default) if isinstance(default, tuple) else default
        value = yaml.safe_dump(data, default_flow_style=True).strip()
    return f"{_spelled(annotation)}, default {value or 'empty'}"


def _spelled(annotation: Any) -> str:
    """Return a type in readable form: ``int | null``, ``selective | full``, ``list[str]``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _spelled(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_spelled, arguments))
    if origin is not None:
        inner = ", ".join("…" if a is ... else _spelled(a) for a in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("config-reference", ConfigReference)
    return {"parallel_read_safe": True}
