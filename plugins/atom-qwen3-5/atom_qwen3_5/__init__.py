"""The Qwen3.5 text models: three layers of gated delta rule per layer of gated attention."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="qwen3_5",
        summary="Qwen3.5 dense text decoder: gated delta rule, every fourth layer gated attention",
        config="atom_qwen3_5.config:Qwen35",
        build="atom_qwen3_5.build:qwen3_5",
    )
    yield Architecture(
        name="qwen3_5_moe",
        summary="Qwen3.5 mixture of experts: the same layers, with experts and a shared one",
        config="atom_qwen3_5.config:Qwen35MoE",
        build="atom_qwen3_5.build:qwen3_5_moe",
    )
