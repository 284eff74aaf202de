"""Prepare torch and torchtitan for this process's device, before torchtitan is imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from atom.errors import UserError
from atom.io import caches
from atom.titan.compat.device import pick
from atom.titan.compat.register import AT_BOOT

_UTILITIES = "torchtitan.tools.utils"
_booted: str | None = None


def boot(device: str) -> None:
    """Repair torch and torchtitan for ``device``. Call this before torchtitan is imported.

    A second call for the same device only checks the compile cache again.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: the process is already set up for another device, or torch's compile cache would
            be in a folder that another account can write.
        RuntimeError: torchtitan was already imported for another device.
    """
    global _booted
    if _booted is not None and _booted != device:
        raise UserError(
            f"this process has been set up for {_booted}, and torchtitan supports one device per "
            "process",
            valid=f"{_booted}, or another command",
            key="device",
            value=device,
        )
    # A process may have been forked from one that was set up in another environment.
    caches.keep_compiled_code()
    if _booted is not None:
        return
    _check_imported(device)
    for repair in AT_BOOT:
        if device in repair.devices:
            repair.apply()
    _booted = device


def settled() -> str:
    """Return this process's device; the best available one if :func:`boot` was not called.

    Kernels can be compared without torchtitan, so without boot.
    """
    if _booted is not None:
        return _booted
    kind = pick("auto")
    if find_spec("torchtitan") is not None:
        boot(kind)
    return kind


def _check_imported(device: str) -> None:
    """Refuse to continue if a module of torchtitan was imported for another device.

    Raises:
        RuntimeError: the message names the module.
    """
    for name, module in sys.modules.items():
        if not name.startswith("torchtitan.") or name == _UTILITIES:
            continue
        if getattr(module, "device_type", device) != device:
            raise RuntimeError(f"{name} was imported for {module.device_type}, not for {device}")
    if device != "cpu":
        from torchtitan.tools import utils

        if utils.device_type != device:
            raise RuntimeError(f"torchtitan is set up for {utils.device_type}, not for {device}")
