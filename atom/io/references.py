"""Resolve references to objects of Python modules: ``module:name`` or ``module:Class.name``."""

from __future__ import annotations

import importlib
from typing import Any


def resolve(reference: str) -> Any:
    """Import and return the object that ``reference`` names."""
    owner, name = owner_of(reference)
    return getattr(owner, name)


def owner_of(reference: str) -> tuple[Any, str]:
    """Return the module or class that has the attribute, and the attribute's name."""
    module, _, path = reference.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name
