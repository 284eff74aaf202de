"""Defer imports of torchtitan that a run may never need.

A job of 10,240 processes reads each module 10,240 times, and two imports take a quarter of the
import time: Hugging Face's ``datasets`` (with pandas and Arrow), for the default loader of
torchtitan's validation; and on a CPU Inductor, for kernels that are compiled on import.
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
    """Import torchtitan's validation without ``datasets``, which loads on first use."""
    if {_LOADERS, _VALIDATION} & sys.modules.keys():
        return
    sys.modules[_LOADERS] = _Later(_LOADERS)
    try:
        import_module(_VALIDATION)
    finally:
        # Later imports get the real module.
        del sys.modules[_LOADERS]


class _Later(types.ModuleType):
    """A stand-in for a module; its attributes resolve to the real ones on use."""

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
    """Import torchtitan's attention without Inductor: a CPU compiles nothing there."""
    with replaced("torch:compile", _leave):
        import_module("torchtitan.models.common.attention")


def _leave(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
    """Return the function passed to ``torch.compile`` unchanged."""
    return _leave if function is None else function
