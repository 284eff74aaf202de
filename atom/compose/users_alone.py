"""Reserve for the user the settings that run code or send data where a run is submitted.

A configuration is data, whoever wrote it. A launcher's commands, options, images and places act as
code: they must come from the command line or the user's own file
(:func:`atom.compose.guard.user_folder`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atom.compose.guard import user_folder
from atom.errors import UserError
from atom.io.lines import users_alone
from atom.recipe.sections import Launcher
from atom.registry.configured import model_of
from atom.registry.host import Host

_SECTION = "launcher"


def check(
    of_others: Mapping[str, Any],
    launcher: str | None,
    overrides: Sequence[str],
    host: Host,
) -> None:
    """Refuse an untrusted file that selects a launcher or sets its commands.

    Args:
        of_others: the content of each such file.
        launcher: the name of the run's launcher; None for this machine.
        overrides: the overrides of the command line.
        host: the plugins.

    Raises:
        UserError: with ``origin`` set to the file.
    """
    keys = users_alone(Launcher)
    if launcher is not None:
        component = host.find(_SECTION, launcher, key=f"{_SECTION}.name")
        if (model := model_of(component)) is not None:
            keys |= users_alone(model)
    for file, content in of_others.items():
        section = content.get(_SECTION) if isinstance(content, dict) else None
        if isinstance(section, str):
            raise _refusal(file, _SECTION, section)
        for key, value in section.items() if isinstance(section, dict) else ():
            if key in keys and value not in (None, [], {}):
                raise _refusal(file, f"{_SECTION}.{key}", value)
    typed = any(o.lstrip("+").startswith((f"{_SECTION}=", f"{_SECTION}.name=")) for o in overrides)
    if launcher is not None and of_others and not typed:
        raise _refusal(next(iter(of_others)), _SECTION, launcher)


def _refusal(file: str, key: str, value: object) -> UserError:
    error = UserError(
        "a file must not set what a launcher runs or sends",
        valid=f"the command line, or your own file below {user_folder()}",
        key=key,
        value=value,
    )
    error.origin = file
    return error
