"""The reference kernels, in plain PyTorch, and the attention kernels that torchtitan ships."""

from collections.abc import Iterator

from atom.plugin import Kernel, Needs, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""

_CUDA = ("cuda",)
_BFLOAT16 = {"bfloat16": 3e-2}
"""FlashAttention takes no float32."""


@hookimpl
def atom_kernels() -> Iterator[Kernel]:
    yield Kernel(
        operation="attention",
        name="reference",
        summary="torch's scaled_dot_product_attention under the dense document mask",
        override="atom_kernels_torch.attention:dense_attention",
    )
    yield Kernel(
        operation="attention",
        name="flex",
        summary="compiled FlexAttention over the block mask",
        needs=Needs(devices=_CUDA, capability=(7, 0)),
        priority=10,
    )
    yield Kernel(
        operation="attention",
        name="flex_flash",
        summary="FlexAttention on its FLASH backend (Hopper and Blackwell)",
        override="atom_kernels_torch.attention:flex_flash_attention",
        needs=Needs(devices=_CUDA, capability=(9, 0), packages=("flash-attn-4",)),
        priority=5,
        tolerance=_BFLOAT16,
    )
    yield Kernel(
        operation="attention",
        name="varlen",
        summary="FlashAttention over packed documents of varying length",
        override="atom_kernels_torch.attention:varlen_attention",
        needs=Needs(devices=_CUDA, capability=(8, 0), context_parallel=False),
        priority=4,
        tolerance=_BFLOAT16,
    )
    for operation, what in {
        "cross_entropy": "torch's cross_entropy, vocabulary-parallel under TP",
        "embedding": "torch's embedding",
        "feed_forward": "SwiGLU from three linear layers",
        "linear": "torch's linear",
        "rms_norm": "torch's rms_norm",
        "rope": "rotary embedding in complex arithmetic",
    }.items():
        yield Kernel(operation=operation, name="reference", summary=what)
