"""Track which resources of a run a launcher reads; an unread resource would be ignored silently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atom.recipe.sections import Launcher

_ATOMS_OWN = frozenset({"name", "dry_run", "gpu", "gpus_per_node", "pass_environment"})
"""Keys that ATOM handles itself: they set ranks and device, or are checked in the submission."""


class LookedAt:
    """The resources of a run, as passed to a launcher's plan; records which attributes are read."""

    def __init__(self, resources: Launcher) -> None:
        self._resources = resources
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._resources, name)
        # Any method, such as model_dump(), exposes all fields.
        self._seen.update([name] if name in Launcher.model_fields else Launcher.model_fields)
        return value

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._seen.update(Launcher.model_fields)
        return iter(self._resources)

    def missed(self) -> list[str]:
        """Return the names of resources that are set but have not been read."""
        return [
            name
            for name, field in Launcher.model_fields.items()
            if name not in self._seen | _ATOMS_OWN
            and getattr(self._resources, name) != field.default
        ]
