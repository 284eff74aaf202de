"""Launch ranks on other machines: torchrun by hand, Slurm, Kubernetes, and SkyPilot."""

from collections.abc import Iterator

from atom.plugin import Launcher, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_launchers() -> Iterator[Launcher]:
    yield Launcher(
        name="torchrun",
        summary="prints the command for each machine, to start by hand",
        config="atom_launchers.config:Torchrun",
        plan="atom_launchers.torchrun:plan",
    )
    yield Launcher(
        name="slurm",
        summary="a batch job, with health checks, restarts, requeueing and arrays",
        config="atom_launchers.config:Slurm",
        plan="atom_launchers.slurm:plan",
        evaluate="atom_launchers.slurm_evaluation:evaluate",
    )
    yield Launcher(
        name="kubernetes",
        summary="a JobSet with one pod per node, with restarts",
        not_run_on="a cluster",
        config="atom_launchers.config:Kubernetes",
        plan="atom_launchers.kubernetes:plan",
    )
    yield Launcher(
        name="skypilot",
        summary="a managed job on any cloud, which survives the loss of spot machines",
        not_run_on="a cloud",
        config="atom_launchers.config:SkyPilot",
        plan="atom_launchers.skypilot:plan",
    )
