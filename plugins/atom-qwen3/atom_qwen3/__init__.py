"""The Qwen3 family: decoders with normalized queries and keys, dense and with experts."""

from collections.abc import Iterator

from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_architectures() -> Iterator[Architecture]:
    yield Architecture(
        name="qwen3",
        summary="Qwen3 dense decoder: grouped-query attention, QK-norm, RoPE, SwiGLU, RMSNorm",
        config="atom_qwen3.config:Qwen3",
        build="atom_qwen3.build:qwen3",
    )
    yield Architecture(
        name="qwen3_moe",
        summary="Qwen3 mixture of experts: top-k softmax routing, balanced without a loss",
        config="atom_qwen3.config:Qwen3MoE",
        build="atom_qwen3.build:qwen3_moe",
    )
