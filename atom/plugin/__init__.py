"""The whole interface between ATOM and a plugin.

A plugin is a Python package with an entry point in the group ``atom`` that names a module::

    [project.entry-points.atom]
    my_plugin = "my_plugin"

The module implements one or more of the hooks below. Each yields *declarations*: names, one
line of summary, and where the code is (``"package.module:attribute"``). ATOM imports the declaring
module whenever it lists plugins, so it must be cheap: no torch at its top level. The code that a
declaration points to is imported only by a run that uses it, and may import anything.

A package's own ``conf/`` folder holds its Hydra config groups: ``conf/architecture/my_net.yaml``
makes ``architecture=my_net`` exist as soon as the package is installed. Such a file names a
component (``name: my_net``) and sets its parameters beside it::

    import atom.plugin

    @atom.plugin.hookimpl
    def atom_architectures():
        yield atom.plugin.Architecture(
            name="my_net",
            summary="My decoder",
            config="my_plugin.config:MyNet",
            build="my_plugin.build:my_net",
        )
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pluggy

from atom.plugin import contexts, declarations
from atom.plugin.contexts import *
from atom.plugin.declarations import *

__all__ = [
    "DEPRECATED",
    "ENTRY_POINT_GROUP",
    "HOOKS",
    "INTERFACE",
    "OLDEST_INTERFACE",
    "Deprecation",
    "Hooks",
    "hookimpl",
    "hookspec",
]
__all__ += contexts.__all__
__all__ += declarations.__all__

INTERFACE = 1
"""Version of this interface. A plugin module may set ``ATOM_INTERFACE`` to the one it was written
for; one that this ATOM does not understand is listed as broken rather than called. What a version
promises is in ``docs/stability.md``."""

OLDEST_INTERFACE = 1
"""The oldest version that is understood. An older one than :data:`INTERFACE` is deprecated."""

ENTRY_POINT_GROUP = "atom"

hookspec = pluggy.HookspecMarker("atom")
hookimpl = pluggy.HookimplMarker("atom")

HOOKS: dict[str, type[Declaration]] = {f"atom_{kind.kind}s": kind for kind in KINDS}
"""The hook of each kind."""


def _specification(kind: type[Declaration]) -> Any:
    def hook(self: Any) -> Any: ...

    hook.__name__ = f"atom_{kind.kind}s"
    hook.__doc__ = f"Yield the {kind.kind}s of this plugin: declarations, :class:`{kind.__name__}`."
    return hookspec(hook)


Hooks = type("Hooks", (), {name: _specification(kind) for name, kind in HOOKS.items()})
Hooks.__doc__ = "The hook specifications: one a kind, each yielding declarations of it."


@dataclass(frozen=True, kw_only=True)
class Deprecation:
    """Since which release of ATOM, until which interface version, and what to use instead."""

    since: str
    until: int
    instead: str


DEPRECATED: dict[str, Deprecation] = {}
"""Hooks (``atom_kernels``) and fields of declarations (``Kernel.priority``) that go. A plugin that
uses one works, and is named in a warning of ``atom plugins`` and ``atom train``."""
