"""Find plugins, check them, answer what there is and why something is broken.

Every entry point is loaded by itself, so that a broken plugin breaks nothing but itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from atom.errors import UserError, nearest
from atom.plugin import ENTRY_POINT_GROUP, HOOKS, INTERFACE, Declaration, Hooks, Kernel


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package. ``reason`` says why it is broken, if it is."""

    entry_point: str
    package: str
    version: str
    module: str
    root: Path | None
    reason: str | None = None

    @property
    def conf(self) -> Path | None:
        """The folder of the plugin's Hydra config groups, if it has one."""
        folder = self.root / "conf" if self.root else None
        return folder if folder is not None and folder.is_dir() else None


@dataclass(frozen=True)
class Component:
    """One declaration of a plugin."""

    plugin: Plugin
    declaration: Declaration

    @property
    def kind(self) -> str:
        return self.declaration.kind

    @property
    def name(self) -> str:
        """The name in its kind; ``operation/name`` for a kernel."""
        if isinstance(self.declaration, Kernel):
            return f"{self.declaration.operation}/{self.declaration.name}"
        return self.declaration.name

    @property
    def address(self) -> str:
        """The name that says which package is meant: ``atom_llama:llama3``."""
        return f"{self.plugin.module.partition('.')[0]}:{self.name}"


class Host:
    """What is installed."""

    def __init__(self, plugins, components) -> None:
        self.plugins = tuple(plugins)
        self.components = tuple(components)

    @classmethod
    def load(cls) -> Host:
        plugins, components = [], []
        for ep in metadata.entry_points(group=ENTRY_POINT_GROUP):
            spec = importlib.util.find_spec(ep.value.partition(".")[0].partition(":")[0])
            root = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
            plugin = Plugin(ep.name, ep.dist.name, ep.dist.version, ep.value, root)
            plugins.append(plugin)
            module = ep.load()
            for hook in HOOKS:
                if hasattr(module, hook):
                    components += [Component(plugin, d) for d in getattr(module, hook)()]
        return cls(plugins, components)

    def find(self, kind, name, *, key=None):
        found = [c for c in self.components if c.kind == kind and name in (c.name, c.address)]
        if not found:
            raise UserError(f"there is no such {kind}; {nearest(name, [c.name for c in self.components if c.kind==kind])}", key=key, value=name)
        return found[0]

    def kernels(self, operation):
        found = [c for c in self.components if isinstance(c.declaration, Kernel) and c.declaration.operation == operation]
        return sorted(found, key=lambda c: (-c.declaration.priority, c.declaration.name))


def resolve(reference, component=None):
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
