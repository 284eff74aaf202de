"""Which of a run's resources a launcher has looked at: the others would be lost in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atom.recipe.sections import Launcher

_ATOMS_OWN = frozenset({"name", "dry_run", "gpu", "gpus_per_node", "pass_environment"})
"""What ATOM heeds itself: the jobs' ranks and device come of it, or the submission is searched."""


class LookedAt:
    """The resources of a run, as a launcher's plan is given them."""

    def __init__(self, resources: Launcher) -> None:
        self._resources = resources
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._resources, name)
        # Any method gives the whole, as model_dump() does.
        self._seen.update([name] if name in Launcher.model_fields else Launcher.model_fields)
        return value

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._seen.update(Launcher.model_fields)
        return iter(self._resources)

    def missed(self) -> list[str]:
        """Return the names of resources that are asked for and have not been looked at."""
        return [
            name
            for name, field in Launcher.model_fields.items()
            if name not in self._seen | _ATOMS_OWN
            and getattr(self._resources, name) != field.default
        ]
