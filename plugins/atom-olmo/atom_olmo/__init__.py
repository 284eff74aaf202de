"""The OLMo 2 family: fully open decoders with norms after attention and feed-forward."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="olmo2",
        summary="OLMo 2 dense decoder: reordered norm, QK-norm over all heads, RoPE, SwiGLU",
        config="atom_olmo.config:Olmo2",
        build="atom_olmo.build:olmo2",
    )
