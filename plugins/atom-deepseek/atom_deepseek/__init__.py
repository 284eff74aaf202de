"""DeepSeek-V3 and related models: latent attention, routed and shared experts."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="deepseek_v3",
        summary="DeepSeek-V3 mixture of experts: latent attention, shared experts (Kimi K2 too)",
        config="atom_deepseek.config:DeepSeekV3",
        build="atom_deepseek.build:deepseek_v3",
    )
