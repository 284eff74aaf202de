"""Gated linear attention: a decoder whose layers keep a state instead of looking back."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="gated_linear_attention",
        summary="linear attention with a learned decay per key channel (Yang et al., 2023)",
        config="atom_gated_linear_attention.config:GatedLinearAttention",
        build="atom_gated_linear_attention.build:build",
    )
