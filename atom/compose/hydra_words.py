"""Translate errors of Hydra and OmegaConf into errors about the command line, by a table."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Sequence

from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
)

from atom.compose.guard import refusal
from atom.errors import UserError

# Python's own limit on the digits of an integer.
_TOO_LONG = re.compile(rf"\d{{{sys.get_int_max_str_digits() + 1},}}")

_NO_KEY = (ConfigAttributeError, ConfigKeyError)
_HYDRA_HAS_NOT = "is not a key of Hydra; `atom train --cfg hydra` lists its keys"

_OF_KEYS: tuple[tuple[str, str], ...] = (
    (
        r"Could not delete from config\. '(?P<key>.*)' does not exist",
        "removes nothing, because {key} has no value; valid: {key}=VALUE, or leave it out",
    ),
    (
        r"Could not delete from config\. The value of '(?P<key>.*)' is (?P<found>.*) and not",
        "removes nothing, because it is {found}; valid: ~{key}",
    ),
    (
        r"Could not delete '(?P<key>[^'=]*)(=.*)?'\. No match",
        "removes nothing, because that is not chosen; valid: leave it out",
    ),
    (
        r"Could not override '(?P<key>hydra[./][^']*)'",
        _HYDRA_HAS_NOT,
    ),
    (
        r"Could not override '(?P<key>[\w/]+)@",
        "an option belongs to the section of its group; valid: {key}={value}",
    ),
    (
        r"Could not override '(?P<key>[\w/]+)'",
        "no {key} is chosen by default, so it must be added; valid: +{key}={value}",
    ),
    (
        r"(?P<key>[\w/]+)\S* appears more than once|Multiple values for (?P<again>[\w/]+)",
        "an option of this group is chosen without +; valid: {key}={value}",
    ),
    (
        r"Override \W*(?P<key>[\w/]+)@\S* looks like a config group override",
        "there is no group {key}; valid: KEY=VALUE, or an option of another group",
    ),
    (
        r"force-add of config groups is not supported: '\+\+(?P<key>hydra)=",
        "replaces Hydra's whole section; valid: one key of it, hydra.KEY=VALUE",
    ),
    (
        r"force-add of config groups is not supported: '\+\+(?P<key>[\w/]+)",
        "an option is chosen without ++; valid: {key}={value}",
    ),
    (
        r"Could not append to config\. An item is already at '(?P<key>.*)'",
        "has a value already; valid: {key}={value}",
    ),
)
"""Pattern of Hydra's message about a ``key``, and the text to append to the argument
with that key.
"""

_OF_WORDS: tuple[tuple[str, str, str], ...] = (
    (
        r"Config group override must be a string or a list",
        r"\+*[\w/@]+=(null|true|false|[-+.\d].*)?",
        "names no option; `atom train --help` lists those of each group",
    ),
    (
        r"Primary config (module|directory)",
        r"--config-path=.*",
        "is not a folder with a configuration; valid: --config-dir=FOLDER, with your own groups",
    ),
    (
        r"Cannot find primary config",
        r"--config-name=.*",
        "is not in the config folders; valid: +experiment=NAME, of a --config-dir=FOLDER",
    ),
)
"""Pattern of Hydra's message, the arguments concerned, and the text to append to such
an argument.
"""


def mistake(error: Exception, arguments: Sequence[str], groups: Container[str]) -> UserError:
    """Return the error for a command line or for the files that it names.

    Args:
        error: Hydra's error.
        arguments: the command line.
        groups: the names of the existing groups.
    """
    if isinstance(error, RecursionError):
        return UserError("the defaults lists of the configuration files form a cycle")
    if isinstance(error, AssertionError):
        return UserError("a defaults list of the configuration files cannot be read by Hydra")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException):
            found = unresolved(cause)
            if len(typed := [_key(a) for a in arguments if "${" in a]) == 1:
                found.key = found.key or typed[0]
                found.origin = "command line"
            elif found.key in [_key(argument) for argument in arguments]:
                found.origin = "command line"
            return found
        cause = cause.__cause__
    words = one_line(error)
    for pattern, said in _OF_KEYS:
        if (match := re.match(pattern, words)) is None:
            continue
        key = next(match[name] for name in ("key", "again") if match.groupdict().get(name))
        # What adds or removes a key can only fail after what sets it.
        for argument in sorted(arguments, key=lambda argument: argument[:1] not in ("+", "~")):
            if _key(argument).partition("@")[0] == key:
                names = match.groupdict() | {"key": key, "value": argument.partition("=")[2]}
                return UserError(f"{argument} (command line): {said.format(**names)}")
    for pattern, about, said in _OF_WORDS:
        for argument in arguments if re.match(pattern, words) else ():
            ours = argument.startswith("-") or _key(argument) in groups
            if ours and re.fullmatch(about, argument):
                return UserError(f"{argument} (command line): {said}")
    for argument in arguments:
        if isinstance(error, ValueError) and _TOO_LONG.search(argument):
            return UserError(f"{_key(argument)} (command line): a number has too many digits")
    return UserError(words)


def unresolved(error: OmegaConfBaseException) -> UserError:
    """Return the error for a value that refers to another one."""
    refused = refusal(error)
    absent = re.search(r"Environment variable '(.*)' not found", str(error))
    words = refused.told if refused else one_line(error)
    if isinstance(error, GrammarParseError):
        words = r"${ begins a reference to another key; valid: ${KEY}, or \${ for the characters"
    elif isinstance(error, _NO_KEY) and (error.full_key or "").startswith("hydra"):
        words = _HYDRA_HAS_NOT
    elif absent is not None:
        words = f"the environment variable {absent[1]} is not set"
    elif "Recursive interpolation detected" in words:
        words = "refers to itself"
    elif "Cannot merge DictConfig with ListConfig" in words:
        words = "must be a section of keys"
    elif isinstance(error, InterpolationKeyError):
        words = f"{words[0].lower()}{words[1:]}; \\${{ stands for the characters ${{"
    return UserError(words, key=error.full_key or None)


def one_line(error: Exception) -> str:
    """Return the first line of an error message, and of its cause if that follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = (lines[0] if lines else type(error).__name__).rstrip(".")
    if words.endswith(":") and isinstance(error.__cause__, Exception):
        words = f"{words} {one_line(error.__cause__)}"
    return words


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]
