"""The complete interface between ATOM and a plugin.

A plugin is a Python package with an entry point in the group ``atom`` that names a module::

    [project.entry-points.atom]
    my_plugin = "my_plugin"

The module implements one or more of the hooks below. Each yields *declarations*: names, one line of
summary, and references to code (``"package.module:attribute"``). ATOM imports the declaring module
whenever it lists plugins, so it must be cheap: no torch at its top level. The referenced code is
imported only by a run that uses it, and can import anything.

A package's own ``conf/`` folder holds its Hydra config groups: ``conf/architecture/my_net.yaml``
makes ``architecture=my_net`` available as soon as the package is installed. Such a file names a
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

from atom.plugin import (
    callbacks,
    contexts,
    declarations,
    evaluators,
    objectives,
    optimizers,
    sources,
)
from atom.plugin.callbacks import *
from atom.plugin.contexts import *
from atom.plugin.declarations import *
from atom.plugin.evaluators import *
from atom.plugin.objectives import *
from atom.plugin.optimizers import *
from atom.plugin.sources import *

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
__all__ += callbacks.__all__
__all__ += contexts.__all__
__all__ += declarations.__all__
__all__ += evaluators.__all__
__all__ += objectives.__all__
__all__ += optimizers.__all__
__all__ += sources.__all__

INTERFACE = 1
"""Version of this interface. A plugin module may set ``ATOM_INTERFACE`` to the version it was
written for; if this ATOM does not support it, the plugin is listed as broken and not called. The
promises of a version are in ``docs/stability.md``."""

OLDEST_INTERFACE = 1
"""The oldest supported version. A version older than :data:`INTERFACE` is deprecated."""

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
    """A deprecation: the ATOM release that deprecated it, the last interface version with it, and
    the replacement.
    """

    since: str
    until: int
    instead: str


DEPRECATED: dict[str, Deprecation] = {}
"""Deprecated hooks (``atom_kernels``) and declaration fields (``Kernel.priority``). A plugin that
uses one works; ``atom plugins`` and ``atom train`` warn and name it."""
