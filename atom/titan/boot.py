"""Set torchtitan up for the device of this process, before anything imports it."""

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
    """Repair torch and torchtitan for ``device``. Call it before torchtitan is imported.

    A second call for the same device does nothing.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: the process was set up for another device before, or what torch compiles would
            be kept where another account can write.
        RuntimeError: torchtitan was imported for another device before.
    """
    global _booted
    if _booted is not None and _booted != device:
        raise UserError(
            f"this process has been set up for {_booted}, and torchtitan trains on one device a "
            f"process; valid: {_booted}, or another command",
            key="device",
            value=device,
        )
    if _booted is not None:
        return
    caches.keep_compiled_code()
    _check_imported(device)
    for repair in AT_BOOT:
        if device in repair.devices:
            repair.apply()
    _booted = device


def settled() -> str:
    """Return the device of this process: the best there is, if nobody has called :func:`boot`.

    Kernels can be compared where there is no torchtitan to set up.
    """
    if _booted is not None:
        return _booted
    kind = pick("auto")
    if find_spec("torchtitan") is not None:
        boot(kind)
    return kind


def _check_imported(device: str) -> None:
    """Refuse to go on if a module of torchtitan has taken another device for its own.

    Raises:
        RuntimeError: it names the module.
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
