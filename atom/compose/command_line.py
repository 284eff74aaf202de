"""Prepare a command line for Hydra: reorder its arguments, and quote text.

Hydra's grammar gives a meaning to many characters that occur in paths and names, and reads
``2024_01`` as a number. The schema of the run tells which keys take text; their values are quoted.
"""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from pydantic import BaseModel

from atom.compose.internals import get_args_parser
from atom.errors import UserError, nearest
from atom.plugin import Declaration
from atom.plugin.parameters import Component, kind_of
from atom.recipe.run import Run
from atom.registry.configured import model_of
from atom.registry.host import Host

MULTIRUN = "--multirun"
COMPLETION = "--shell-completion"
_ALONE = ("--run", MULTIRUN, "--cfg", "--info")
_WITH = {"--resolve": ("--cfg", "--help"), "--package": ("--cfg",)}

ENGINE_TEXT = {
    "activation_checkpoint.determinism_check",
    "activation_checkpoint.mode",
    "checkpoint.folder",
    "checkpoint.initial_load",
    "checkpoint.initial_load_path",
    "checkpoint.keep_best_of",
    "comm.save_traces_file_prefix",
    "comm.save_traces_folder",
    "compile.backend",
    "debug.save_config_file",
    "metrics.save_tb_folder",
    "parallelism.context_parallel_load_balancer",
    "parallelism.context_parallel_ptrr_mask_key",
    "parallelism.pipeline_parallel_schedule",
    "parallelism.pipeline_parallel_schedule_csv",
    "profiler.save_memory_snapshot_folder",
    "profiler.save_traces_folder",
}
"""Text keys of torchtitan's sections, listed because its dataclasses need torch."""

_OVERRIDE = re.compile(
    r"(?P<sign>[+~]{0,2})(?P<key>[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.A | re.S
)
_REMOVAL = re.compile(r"~[A-Za-z_][\w./@:-]*", re.A)
_HOME = re.compile(r"(?P<scheme>[a-z]+:)?(?P<path>~(/.*)?)", re.S)
_UNREADABLE = object()


# ---------------------------------------------------------------------------- options


def arranged(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with all overrides first, then Hydra's options in their long form.

    Raises:
        UserError: an option is unknown, or lacks its value.
    """
    known = get_args_parser()._option_string_actions
    overrides: list[str] = []
    options: list[str] = []
    words = deque(arguments)
    while words:
        word = words.popleft()
        if not word.startswith("-"):
            overrides.append(_readable(word))
        elif word == "--":
            overrides += map(_readable, words)
            words.clear()
        else:
            name, equals, value = word.partition("=")
            if name == "--version":
                raise UserError(
                    "atom train: --version is an option of atom", valid="atom --version"
                )
            action = known.get(name)
            if action is None:
                raise UserError(f"atom train: there is no option {name}; {nearest(name, known)}")
            name = action.option_strings[0]
            if action.nargs == 0:
                if equals:
                    raise UserError(f"atom train: {name} takes no value")
                options.append(name)
                continue
            choices = list(map(str, action.choices or ()))
            if not equals and action.nargs == "?" and (not words or words[0] not in choices):
                options.append(name)
                continue
            if not (equals or words):
                raise UserError(f"atom train: {name} needs a value{_valid(choices)}")
            value = value if equals else words.popleft()
            if choices and value not in choices:
                raise UserError(f"atom train: {name} {value} is not known{_valid(choices)}")
            if name == "--config-dir":
                value = home_expanded(value)
            options.append(f"{name}={value}")
    _check_together(options, overrides)
    return [*overrides, *options]


def _check_together(options: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse options that exclude or require each other."""
    given = dict.fromkeys(option.partition("=")[0] for option in options)
    if COMPLETION in given:
        raise UserError(f"atom train: {COMPLETION} is not supported", valid="atom completion SHELL")
    alone = [name for name in given if name in _ALONE]
    if len(alone) > 1:
        raise UserError(
            f"atom train: {' and '.join(alone)} cannot be combined", valid="one of them"
        )
    if "--hydra-help" in given and overrides:
        raise UserError(
            "atom train: --hydra-help cannot be combined with other arguments", valid="no overrides"
        )
    for name, others in _WITH.items():
        if name in given and not given.keys() & set(others):
            raise UserError(
                f"atom train: {name} applies only to the output of {' or '.join(others)}"
            )


def _readable(word: str) -> str:
    try:
        word.encode()
    except UnicodeEncodeError:
        shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise UserError(f"{shown} (command line): is not UTF-8 text") from None
    return word


def _valid(choices: Sequence[str]) -> str:
    return f"; valid: {', '.join(choices)}" if choices else ""


# ---------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Takes:
    """The values that a key accepts, as far as this affects how they are written."""

    text: bool = False
    path: bool = False
    numbers: bool = False
    lists: bool = False


def literal(argument: str, takes: Takes, *, sweep: bool = False) -> str:
    """Return an override that Hydra reads as the user meant it.

    Args:
        argument: as typed.
        takes: the values that its key accepts.
        sweep: whether commas separate the values of several runs.

    Raises:
        UserError: it is not an override, or has several values where one is expected.
    """
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        if _REMOVAL.fullmatch(argument):
            return argument
        raise UserError(
            f"{argument} (command line): is no override",
            valid="KEY=VALUE, such as training.steps=100, or GROUP=OPTION, such as tokenizer=bytes",
        )
    sign, key, value = match["sign"], match["key"], match["value"]
    pieces = [value]
    if sweep:
        pieces = list(_pieces(value))
    elif (parsed := _parsed(value)) is not _UNREADABLE and _is_sweep(parsed):
        assert isinstance(parsed, Override)
        if parsed.value_type != ValueType.SIMPLE_CHOICE_SWEEP or not takes.text or takes.lists:
            raise _several(key, value, takes)
    return f"{sign}{key}={','.join(_piece(key, piece, takes) for piece in pieces)}"


def _piece(key: str, piece: str, takes: Takes) -> str:
    """Return one value, quoted if Hydra would read it differently."""
    if takes.path and not piece:
        error = UserError("is empty", valid="a path", key=key, value=piece)
        error.origin = "command line"
        raise error
    parsed = _parsed(piece)
    if parsed is _UNREADABLE:
        return quoted(piece)
    assert isinstance(parsed, Override)
    value = parsed._value
    keeps = (
        not takes.text
        or value is None
        or isinstance(value, QuotedString)
        or (takes.lists and isinstance(value, list | dict))
        or (takes.numbers and isinstance(value, int | float))
        or (_is_sweep(parsed) and parsed.value_type != ValueType.SIMPLE_CHOICE_SWEEP)
        or value == piece
    )
    return piece if keeps else quoted(piece)


def _parsed(value: str) -> Any:
    """Return Hydra's reading of an override value; :data:`_UNREADABLE` if it cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    # A number with too many digits raises ValueError.
    except (HydraException, ValueError, RecursionError):
        return _UNREADABLE


def _is_sweep(parsed: Override) -> bool:
    return parsed.is_sweep_override()


def quoted(text: str) -> str:
    """Return text quoted so that Hydra reads it unchanged."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _pieces(value: str) -> Iterator[str]:
    """Yield the parts between commas that are outside of quotes and brackets."""
    quote, depth, cuts = "", 0, [-1]
    for place, character in enumerate(value):
        if quote:
            if character == quote and value[place - 1] != "\\":
                quote = ""
        elif character in "'\"" and _closes(value, place):
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth <= 0:
            cuts.append(place)
    if depth > 0:  # unbalanced brackets, which are text
        cuts = [-1, *(place for place, character in enumerate(value) if character == ",")]
    for before, after in pairwise([*cuts, len(value)]):
        yield value[before + 1 : after]


def _closes(value: str, place: int) -> bool:
    return value[place] in value[place + 1 :]


def _several(key: str, value: str, takes: Takes) -> UserError:
    ways = [f"-m {shlex.quote(f'{key}={value}')} for a run of each"]
    if takes.lists or not (takes.text or takes.numbers):
        ways.insert(0, f"{_in_shell(f'{key}=[{value}]')} for a list")
    if takes.text:
        ways.append(f"{_in_shell(f'{key}={quoted(value)}')} for one text")
    error = UserError("holds several values", valid=f"{', '.join(ways)}", key=key, value=value)
    error.origin = "command line"
    return error


def _in_shell(word: str) -> str:
    """Return an argument quoted for a shell."""
    return shlex.quote(word) if re.search(r'[$"\\`!]', word) else f'"{word}"'


def home_expanded(text: str) -> str:
    """Return ``text`` with a leading ``~`` expanded to the home folder, as a shell does.

    Raises:
        UserError: there is no home folder.
    """
    match = _HOME.fullmatch(text)
    if match is None:
        return text
    try:
        path = Path(match["path"]).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no home folder", valid="a path without ~") from None
    return f"{match['scheme'] or ''}{path}"


# ---------------------------------------------------------------------------- keys


def taken(argument: str, host: Host | None = None) -> Takes:
    """Return the values that the key of an override accepts.

    Args:
        argument: as typed.
        host: the plugins, for the parameters of their components; None to ignore them.
    """
    key = argument.lstrip("+~").partition("=")[0]
    if key in ENGINE_TEXT:
        return Takes(text=True)
    first, *names = key.split(".")
    section = Run.model_fields.get(first)
    annotations = set() if section is None else {section.annotation}
    for name in names:
        annotations = {
            below
            for annotation in annotations
            for option in _options(annotation)
            for below in _below(option, name, host)
        }
    options = {option for annotation in annotations for option in _options(annotation)}
    options |= {type(v) for o in options if get_origin(o) is Literal for v in get_args(o)}
    return Takes(
        text=bool(options & {str, Path}),
        path=Path in options,
        numbers=bool(options & {int, float, bool}),
        lists=any(get_origin(option) in (list, tuple, dict) for option in options),
    )


def _options(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, without their annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for option in get_args(annotation):
            yield from _options(option)
    else:
        yield annotation


def _below(option: Any, name: str, host: Host | None) -> Iterable[Any]:
    """Return the types of a key in a section."""
    if get_origin(option) is dict:
        return [get_args(option)[1]]
    if not (isinstance(option, type) and issubclass(option, BaseModel)):
        return []
    if name in option.model_fields:
        return [option.model_fields[name].annotation]
    kind = kind_of(option) if issubclass(option, Component) else None
    if kind is not None and host is not None:
        return list(_of_components(host, kind, name))
    return []


def _of_components(host: Host, kind: type[Declaration], name: str) -> Iterator[Any]:
    """Yield the types of a parameter, from all components of a kind that have it."""
    for component in host.components:
        if component.kind != kind.kind:
            continue
        with suppress(UserError):
            model = model_of(component)
            if model is not None and name in model.model_fields:
                yield model.model_fields[name].annotation
