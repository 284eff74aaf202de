"""Read the plugin lists of a command line, before composition and before plugins are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from atom.errors import UserError
from atom.registry.trust import LISTS, SECTION, Trust, mistake, patterns_of


def trust(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Trust:
    """Return the combined plugin lists of the user's file, the environment and a command line.

    Args:
        arguments: the arguments of ``atom train``; all except ``plugins.…`` are ignored.
        environment: the environment variables.

    Raises:
        UserError: one of them is invalid. Nothing is loaded then.
    """
    return Trust.gather(typed(arguments), environment)


def typed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``plugins.…=…`` on a command line by name: lists, and a path.

    Raises:
        UserError: a value is not a list of patterns, or a key is unknown.
    """
    found: dict[str, Any] = {}
    for argument in filter(_is_typed, arguments):
        # Imported only here, because `atom plugins` and the ranks do not need Hydra.
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        from atom.compose.command_line import literal, taken

        key, _, text = argument.lstrip("+~").partition("=")
        name = key.removeprefix(f"{SECTION}.")
        try:
            override = OverridesParser.create().parse_override(literal(argument, taken(argument)))
            sound = not override.is_delete() and not override.is_sweep_override()
        except (HydraException, ValueError, UserError):
            sound = False
        if not sound or name not in (*LISTS, "locked"):
            raise mistake(
                "is decided before the run is composed; valid: plugins.allow=[PATTERN,…], "
                "plugins.block=[PATTERN,…] and plugins.locked=FILE",
                key,
                text or ...,
            )
        value = override.value()
        if name != "locked":
            value = patterns_of(value, key, "command line")
        elif value is not None and (not isinstance(value, str) or not value):
            raise mistake("valid: a file that `atom plugins lock` wrote", key, value)
        found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def _is_typed(argument: str) -> bool:
    """Return whether an argument sets a plugin list."""
    key = argument.lstrip("+~").partition("=")[0]
    return key == SECTION or key.startswith(f"{SECTION}.")
