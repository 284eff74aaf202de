"""Imports of torchtitan's that a run has no use for, put off until something has.

A job of 10,240 processes reads each of its modules 10,240 times, and two imports take a quarter of
the time of all: Hugging Face's ``datasets`` (with pandas and Arrow), for the loader that is the
default of torchtitan's validation, and on a CPU Inductor, for kernels that are compiled there.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import Any

from atom.io.repair import replaced

_LOADERS = "torchtitan.hf_datasets.text_datasets"
_VALIDATION = "torchtitan.components.validate"


def datasets() -> None:
    """Import torchtitan's validation without ``datasets``; and the loader once it is used."""
    if {_LOADERS, _VALIDATION} & sys.modules.keys():
        return
    sys.modules[_LOADERS] = _Later(_LOADERS)
    try:
        import_module(_VALIDATION)
    finally:
        # Whoever imports the module from now on gets it.
        del sys.modules[_LOADERS]


class _Later(types.ModuleType):
    """Stands for a module; what is imported from it is the real one's once it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Attribute(self.__name__, name)


class _Attribute:
    def __init__(self, module: str, name: str) -> None:
        self._place = (module, name)

    def __getattr__(self, name: str) -> Any:
        module, own = self._place
        return getattr(getattr(import_module(module), own), name)


def attention() -> None:
    """Import torchtitan's attention without Inductor: nothing is compiled on a CPU there."""
    with replaced("torch:compile", _leave):
        import_module("torchtitan.models.common.attention")


def _leave(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
    """Return the function that ``torch.compile`` is given."""
    return _leave if function is None else function
