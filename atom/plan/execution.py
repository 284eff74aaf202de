"""Describe how a layout is run: kernels, precision of products, sharding, overlap."""

from __future__ import annotations

from dataclasses import dataclass

EAGER, COMPILED, KERNELS = "eager", "compiled", "kernels"
"""How memory-bound operations are fused: not, by torch.compile, by hand-written kernels."""

FSDP, ZERO1 = "fsdp", "zero1"
"""What data parallelism shards: everything (ZeRO-3, or 2 without reshard), optimizer states."""

BFLOAT16, TENSORWISE, ROWWISE, DELAYED, MXFP8 = (
    "bfloat16", "float8_tensorwise", "float8_rowwise", "float8_delayed", "mxfp8",
)  # fmt: skip
"""Precision of the layers' matrix products; other dtypes by their name."""

RECIPES = (TENSORWISE, ROWWISE, DELAYED, MXFP8)
"""Precisions that quantize inputs and weights to eight bits."""

UNFUSED, FLASH1, FLASH2, CUDNN = "unfused", "flash1", "flash2", "cudnn"
"""Attention kernels; ``cudnn`` stands for FlashAttention 3 too, ``flash1`` for Triton's of 2023."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a layout is run.

    Attributes:
        products: precision of the layers' products: a dtype, or a recipe of eight bits (the
            output layer stays in bfloat16 then).
        fusion: how memory-bound operations are fused.
        attention: the attention kernel.
        sharding: what data parallelism shards.
        async_tp: whether products are split to overlap tensor parallelism's communication.
        regathers: whether sequence parallelism gathers inputs again for weight gradients, as
            Megatron does, instead of keeping them.
        saves_products: under selective checkpointing, whether every other product is kept
            (torchtitan); otherwise only attention is repeated (Megatron).
        cached_weights: whether quantized weights are kept for all micro-batches of a step.
        float8_gather: whether FSDP and tensor parallelism gather weights and inputs in float8
            (torchtitan's tensor-wise recipe).
        sends_once: whether a token is sent once to a node with several of its experts (DeepEP).
        overlaps_ep: whether experts' dispatch overlaps with computation.
        overlaps_dp: whether collectives of data parallelism run beside computation.
    """

    products: str = BFLOAT16
    fusion: str = EAGER
    attention: str = FLASH2
    sharding: str = FSDP
    async_tp: bool = False
    regathers: bool = False
    saves_products: bool = True
    cached_weights: bool = False
    float8_gather: bool = False
    sends_once: bool = False
    overlaps_ep: bool = False
    overlaps_dp: bool = True

    @property
    def unquantized(self) -> str:
        """Return the dtype of products that are not quantized."""
        return BFLOAT16 if self.products in RECIPES else self.products
