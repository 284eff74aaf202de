"""Probe faults of Hydra and OmegaConf with untrusted configuration files."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import types
from pathlib import Path

from hydra import main
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf


def hydra_takes_no_loader() -> bool:
    takes = {*inspect.signature(main).parameters}
    takes |= {*inspect.signature(Hydra.create_main_hydra2).parameters}
    return not any("loader" in name for name in takes)


def interpolations_multiply() -> bool:
    levels = {f"k{n}": f"${{k{n - 1}}}${{k{n - 1}}}" for n in range(1, 11)}
    whole = OmegaConf.to_container(OmegaConf.create({"k0": "x"} | levels), resolve=True)
    return len(whole["k10"]) == 2**10  # type: ignore[call-overload,index]


def files_read_the_environment() -> bool:
    os.environ["ATOM_PROBE"] = "a secret"
    return bool(OmegaConf.create({"read": "${oc.env:ATOM_PROBE}"}).read == "a secret")


def cfg_shows_secrets() -> bool:
    hydra = object.__new__(Hydra)
    shown = hydra.get_sanitized_cfg(OmegaConf.create({"token": "a secret", "hydra": {}}), "job")
    return bool(shown.token == "a secret")


def sweeps_write_before_their_first_run() -> bool:
    text = inspect.getsource(BasicSweeper.sweep)
    return text.index("multirun.yaml") < text.index("launcher.launch(")


def main_takes_no_arguments() -> bool:
    return not {"args", "argv", "overrides"} & set(inspect.signature(main).parameters)


def every_plugin_is_imported() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "atom_probe.py").write_text("")
        package = types.ModuleType("hydra_plugins")
        package.__path__ = [folder]
        Plugins._scan_all_plugins([package])
    return "hydra_plugins.atom_probe" in sys.modules
