"""Replace constants of the time model by those that were fitted to a device."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from atom.plan.constants import DEFAULT, Constants
from atom.plan.device import DeviceDescription


def of_device(device: DeviceDescription) -> Constants:
    """Return the constants for ``device``: those of its file, and the fitted ones for the rest."""
    return _of(tuple(sorted((device.constants or {}).items())))


@lru_cache(maxsize=64)
def _of(own: tuple[tuple[str, float], ...]) -> Constants:
    return replace(DEFAULT, **dict(own))
