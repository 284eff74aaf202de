"""Ranks on other machines: torchrun by hand, and Slurm."""

from collections.abc import Iterator

from atom.plugin import Launcher, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="torchrun",
        summary="prints the command for each of several machines, to be started by hand",
        config="atom_launchers.config:Torchrun",
        plan="atom_launchers.torchrun:plan",
    )
    yield Launcher(
        name="slurm",
        summary="a batch job, with health checks, restarts, requeueing and arrays",
        config="atom_launchers.config:Slurm",
        plan="atom_launchers.slurm:plan",
    )
