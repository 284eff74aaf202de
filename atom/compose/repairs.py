"""Declare the repairs of Hydra and OmegaConf; most limit what a configuration file can do.

This module is data only and imports nothing.
"""

from __future__ import annotations

from atom.io.repair import Repair

_COMPOSING = "while a command is composed"
_LOADER = "hydra._internal.config_loader_impl"
_PROBES = "atom.testing.probes.hydra"

LOADER = Repair(
    target="hydra._internal.hydra:ConfigLoaderImpl",
    reason="Hydra takes no loader of an application's own, and its loader lets a configuration "
    "file name code, reach files outside of the search path, and set Hydra itself up.",
    version="hydra-core 1.3.8",
    upstream="docs/upstream/hydra-embedding.md",
    remove_when="hydra.main takes a loader, or loads files as data.",
    applied=_COMPOSING,
    where="atom/compose/guard.py",
    sources={
        "hydra._internal.hydra:ConfigLoaderImpl": "2384cae7",
        "hydra._internal.hydra:Hydra.create_main_hydra2": "567f3b94.e361a497",
        f"{_LOADER}:ConfigLoaderImpl._load_single_config": "bcc34b3d.cf33039b",
    },
    probe=f"{_PROBES}:hydra_takes_no_loader",
)
GROWTH = Repair(
    target="omegaconf.base:Container.resolve_parse_tree",
    reason="Interpolations that refer to each other multiply without an end.",
    version="omegaconf 2.3.1",
    upstream="docs/upstream/omegaconf-untrusted.md",
    remove_when="OmegaConf limits what interpolations come to.",
    applied=_COMPOSING,
    where="atom/compose/guard.py",
    sources={"omegaconf.base:Container.resolve_parse_tree": "fae9c85a.cfec8e74"},
    probe=f"{_PROBES}:interpolations_multiply",
)
RESOLVERS = Repair(
    target="omegaconf.basecontainer:BaseContainer._resolvers",
    reason="A file may call every resolver that any package has registered, and read the "
    "environment.",
    version="omegaconf 2.3.1",
    upstream="docs/upstream/omegaconf-untrusted.md",
    remove_when="OmegaConf resolves a configuration with a table of resolvers that it is given.",
    applied=_COMPOSING,
    where="atom/compose/guard.py",
    sources={
        "omegaconf.basecontainer:BaseContainer._resolvers": "42a4a49e",
        "omegaconf.omegaconf:register_default_resolvers": "02d1a6fc.cd0acd97",
    },
    probe=f"{_PROBES}:files_read_the_environment",
)
SHOWN = Repair(
    target="hydra._internal.hydra:Hydra.get_sanitized_cfg",
    reason="--cfg prints secrets.",
    version="hydra-core 1.3.8",
    upstream="docs/upstream/hydra-embedding.md",
    remove_when="Hydra lets an application change what --cfg shows.",
    applied=_COMPOSING,
    where="atom/compose/guard.py",
    sources={"hydra._internal.hydra:Hydra.get_sanitized_cfg": "0aea08ba.1150e567"},
    probe=f"{_PROBES}:cfg_shows_secrets",
)
SWEEPER = Repair(
    target="hydra.core.plugins:Plugins.instantiate_sweeper",
    reason="A sweep that is refused or dry leaves a folder and multirun.yaml behind.",
    version="hydra-core 1.3.8",
    upstream="docs/upstream/sweep-folder.md",
    remove_when="A sweeper writes nothing before its first run.",
    applied=_COMPOSING,
    where="atom/compose/sweeps.py",
    sources={
        "hydra.core.plugins:Plugins.instantiate_sweeper": "2f90b33f.7c667675",
        "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.sweep": "4d416c21.34420213",
    },
    probe=f"{_PROBES}:sweeps_write_before_their_first_run",
)
COMMAND_LINE = Repair(
    target="sys:argv",
    reason="hydra.main reads the command line of the process, and prints errors unless an "
    "environment variable (HYDRA_FULL_ERROR) says otherwise.",
    version="hydra-core 1.3.8",
    upstream="https://github.com/hydra-ecosystem/hydra/issues/2459",
    remove_when="hydra.main takes arguments, and raises its errors on request.",
    applied=_COMPOSING,
    where="atom/compose/compose.py",
    sources={
        "hydra.main:main": "0f6a2420.1f5be30e",
        "hydra._internal.utils:_run_hydra": "949469dd.8442d5ab",
    },
    probe=f"{_PROBES}:main_takes_no_arguments",
)
PLUGINS = Repair(
    target="sys:modules",
    reason="Hydra imports every module of the namespace hydra_plugins, those of packages that the "
    "trust lists block, too.",
    version="hydra-core 1.3.8",
    upstream="docs/upstream/hydra-embedding.md",
    remove_when="Hydra imports the plugins that an application names.",
    applied="before a command is composed or completed, if a package is blocked",
    where="atom/compose/internals.py",
    sources={"hydra.core.plugins:Plugins._scan_all_plugins": "40d89a13.5c3aa63a"},
    probe=f"{_PROBES}:every_plugin_is_imported",
)

REPAIRS = (LOADER, GROWTH, RESOLVERS, SHOWN, SWEEPER, COMMAND_LINE, PLUGINS)
