"""Data, tensor, pipeline and context parallelism, in any combination."""

from collections.abc import Iterator

from atom.plugin import Parallelism, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_parallelisms() -> Iterator[Parallelism]:
    yield Parallelism(
        name="mesh",
        summary="torchtitan's device mesh: data (FSDP, HSDP) x tensor x pipeline x context",
        build="atom_parallelism.build:mesh",
    )
    yield Parallelism(
        name="unsharded",
        summary="one rank and its model as it is, without FSDP",
        build="atom_parallelism.unsharded:unsharded",
    )
    yield Parallelism(
        name="auto",
        summary="the mesh, with degrees and activation checkpointing chosen for model and device",
        build="atom_parallelism.build:mesh",
        choose="atom_parallelism.auto:auto",
    )
