"""List a run's settings as flat keys, to show and to compare."""

from __future__ import annotations

from typing import Any

from atom.recipe.run import Run

FOLLOW = ("run.", "resume.", "resolved.", "plugins.used")
"""Settings that are derived from others, or from the current folder of the command."""


def flat(run: Run) -> dict[str, Any]:
    """Return dotted key -> value for all settings that a user can choose."""
    return {
        key: value
        for key, value in leaves(run.model_dump(mode="json")).items()
        if not key.startswith(FOLLOW) and key != "resolved"
    }


def leaves(sections: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values that are not sections, by their dotted key."""
    found: dict[str, Any] = {}
    for name, value in sections.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{key}.")
        elif not isinstance(value, dict):
            found[key] = value
    return found
