"""Complete an argument of ``atom train``: groups, their options, keys and values.

Hydra supplies the groups and files. The models of the run and of the chosen components supply the
keys that no file contains, and the valid values. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from atom.compose import compose, plugin_lists
from atom.compose.guard import guarded
from atom.compose.internals import ConfigLoaderImpl
from atom.errors import UserError, shown
from atom.plugin import Declaration, Kernel
from atom.plugin.parameters import Component, kind_of
from atom.recipe.run import Run
from atom.registry.configured import model_of
from atom.registry.host import Host

_PREFIX = re.compile(r"[+~]*")

# Errors that Hydra, OmegaConf and ATOM raise for incomplete input.
_UNFINISHED = (HydraException, OmegaConfBaseException, UserError)


def of_overrides(before: Sequence[str], word: str, config_dir: str | None) -> list[str]:
    """Return the completions of ``word``.

    Args:
        before: the preceding arguments of ``atom train``, including options of Hydra.
        word: the beginning of an override; empty for any.
        config_dir: the value of ``--config-dir``, if given.
    """
    host = Host.load(plugin_lists.trust(before))
    loader = compose.config_loader(host, config_dir)
    prefix = _PREFIX.match(word)
    assert prefix is not None
    bare = word[prefix.end() :]
    with guarded(before, loader.groups, loader.own):
        groups = list(_of_groups(loader, bare))
        if "=" in bare and groups:
            found = groups
        else:
            found = groups + list(_of_keys(_composed(loader, before), host, bare))
    if "~" in prefix[0]:
        found = [candidate.removesuffix("=") for candidate in found]  # `~KEY` removes a key
    return [prefix[0] + candidate for candidate in dict.fromkeys(found)]


def _of_groups(loader: ConfigLoaderImpl, word: str) -> Iterator[str]:
    """Yield the options after ``GROUP=``, or the groups at the last ``/``."""
    group, equals, options = word.partition("=")
    if equals:
        # A sweep has several options: `tokenizer=bytes,bpe`.
        given = options.rpartition(",")[0]
        start = f"{group}={given}," if given else f"{group}="
        yield from (
            start + option
            for option in loader.get_group_options(group, ObjectType.CONFIG)
            if option not in given.split(",")
        )
        return
    parent = group.rpartition("/")[0]
    for name in loader.get_group_options(parent, ObjectType.GROUP):
        path = f"{parent}/{name}" if parent else name
        if loader.get_group_options(path, ObjectType.CONFIG):
            yield f"{path}="
        if loader.get_group_options(path, ObjectType.GROUP):
            yield f"{path}/"


def _composed(loader: ConfigLoaderImpl, before: Sequence[str]) -> dict[str, Any]:
    """Return the config with the options chosen so far and unresolved interpolations.

    Other overrides do not affect which keys exist. An invalid choice is ignored.
    """
    groups = loader.list_groups("")
    chosen = [w for w in before if w.lstrip("+~").partition("=")[0] in groups and "," not in w]
    for overrides in (chosen, []):
        with suppress(*_UNFINISHED):
            config = loader.load_configuration(compose.CONFIG_NAME, overrides, RunMode.RUN)
            container = OmegaConf.to_container(config, resolve=False)
            return {str(key): value for key, value in dict(container).items()}  # type: ignore[arg-type]
    return {}


def _of_keys(config: Mapping[str, Any], host: Host, word: str) -> Iterator[str]:
    """Yield the keys at the last ``.``, or the values after ``KEY=``."""
    key, equals, _ = word.partition("=")
    path = key.split(".")
    parent: Any = config
    for name in path[:-1]:
        parent = parent.get(name) if isinstance(parent, Mapping) else None
    parent = parent if isinstance(parent, Mapping) else {}
    types = _types(config, host, path[:-1])
    if equals:
        yield from (f"{key}={value}" for value in _values(types.get(path[-1])))
        if (value := parent.get(path[-1])) is not None and _is_plain(value):
            yield f"{key}={shown(value)}"
        return
    for name in [*parent, *types]:
        is_section = isinstance(parent.get(name), Mapping)
        yield ".".join([*path[:-1], str(name)]) + ("." if is_section else "=")


def _types(config: Mapping[str, Any], host: Host, path: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a section with their types, as far as a model defines them."""
    if not path:
        fields = Run.model_fields
        return {name: fields[name].annotation for name in fields if name in config}
    if list(path) == ["kernels"]:
        return _kernels(host)
    annotation: Any = Run.model_fields[path[0]].annotation if path[0] in Run.model_fields else None
    value: Any = config.get(path[0])
    for name in path[1:]:
        annotation = _fields(annotation, value, host).get(name)
        value = value.get(name) if isinstance(value, Mapping) else None
    return _fields(annotation, value, host)


def _fields(annotation: Any, value: Any, host: Host) -> dict[str, Any]:
    """Return the keys below a key with a given type and value, with their types."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _fields(arguments[0], value, host)
    if origin in (Union, UnionType):
        return {k: v for option in arguments for k, v in _fields(option, value, host).items()}
    if origin is dict:
        return dict.fromkeys(value, arguments[1]) if isinstance(value, Mapping) else {}
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    found = {name: field.annotation for name, field in annotation.model_fields.items()}
    if issubclass(annotation, Component):
        found |= _of_component(kind_of(annotation), value, host)
    return found


def _of_component(kind: type[Declaration] | None, value: Any, host: Host) -> dict[str, Any]:
    """Return the keys of a component's section: its name, and its parameters."""
    if kind is None:
        return {}
    names = tuple(c.name for c in host.components if c.kind == kind.kind)
    found: dict[str, Any] = {"name": Literal[names]} if names else {}
    name = value.get("name") if isinstance(value, Mapping) else None
    with suppress(UserError):
        component = host.find(kind.kind, name) if isinstance(name, str) else None
        model = None if component is None else model_of(component)
        fields = {} if model is None else model.model_fields
        found |= {parameter: field.annotation for parameter, field in fields.items()}
    return found


def _kernels(host: Host) -> dict[str, Any]:
    """Return the operations that have kernels; the type of each is the names of its kernels."""
    names: dict[str, list[str]] = {"default": []}
    for component in host.components:
        if isinstance(component.declaration, Kernel):
            for key in ("default", component.declaration.operation):
                names.setdefault(key, []).append(component.declaration.name)
    return {key: Literal[tuple(dict.fromkeys(["auto", *found]))] for key, found in names.items()}


def _values(annotation: Any) -> list[str]:
    """Return the values of a type with a small set of values; the shell completes paths."""
    if Path in get_args(annotation):
        return []
    if get_origin(annotation) is Literal:
        return [shown(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return [value for option in get_args(annotation) for value in _values(option)]
    return {bool: ["false", "true"], NoneType: ["null"]}.get(annotation, [])


def _is_plain(value: object) -> bool:
    """Return whether a value can be typed unchanged: no interpolation, no ``???``, no list."""
    if isinstance(value, str):
        return re.fullmatch(r"[\w./:@%+-]+", value) is not None
    return isinstance(value, bool | int | float)
