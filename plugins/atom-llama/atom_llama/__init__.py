"""The Llama 3 family: dense decoders with grouped-query attention, RoPE and SwiGLU."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="llama3",
        summary="Llama 3 dense decoder: grouped-query attention, RoPE, SwiGLU, RMSNorm",
        config="atom_llama.config:Llama3",
        build="atom_llama.build:llama3",
    )
