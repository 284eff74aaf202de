"""Data, tensor, pipeline and context parallelism, alone and together."""

from collections.abc import Iterator

from atom.plugin import Parallelism, hookimpl


@hookimpl
def atom_parallelisms() -> Iterator[Parallelism]:
    yield Parallelism(
        name="mesh",
        summary="torchtitan's device mesh: data (FSDP, HSDP) x tensor x pipeline x context",
        build="atom_parallelism.build:mesh",
    )
