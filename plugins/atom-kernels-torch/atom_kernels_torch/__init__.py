"""Reference kernels in plain PyTorch, and the attention kernels that torchtitan ships."""

from collections.abc import Iterator

from atom.plugin import Kernel, Needs, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""

_CUDA = ("cuda",)
_BY_NAME = -20
"""Below the reference's priority: ``kernels=auto`` never selects it."""
_BFLOAT16 = {"bfloat16": 3e-2}
"""FlashAttention does not support float32."""

_OF_PARAMETERS = {"float32": 1e-5, "bfloat16": 3e-2}

_NO_SINKS = {"sinks": 0}
"""torch's attention over packed documents has no gradient of the softmax's sum; sinks need it."""

# torch's grouped product requires rows at multiples of 16 bytes.
_NEEDS = {"grouped_mm": Needs(multiples={"dim": 8, "hidden_dim": 8})}

_WITHOUT_TORCHTITAN: dict[str, tuple[str, ...]] = {
    "attention_projections": (),
    "feed_forward": ("feed_forward", "silu_mul"),
    "moe_dispatch": (),
    "rms_norm": ("rms_norm", "add_rms_norm"),
}
"""Operation -> its reference functions; by default one with the operation's name."""


@hookimpl
def atom_kernels() -> Iterator[Kernel]:
    yield Kernel(
        operation="attention",
        name="reference",
        summary="torch's scaled_dot_product_attention under the dense document mask",
        override="atom_kernels_torch.attention:dense_attention",
        functions=_functions("attention"),
    )
    # Not run on a GPU yet. The limits are those of torch's own check, for the oldest cuDNN.
    yield Kernel(
        operation="attention",
        name="cudnn",
        summary="torch's scaled_dot_product_attention by cuDNN, under the dense document mask",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:cudnn_attention",
        needs=Needs(
            devices=_CUDA,
            capability=(8, 0),
            largest={"head_dim": 128},
            multiples={"head_dim": 8},
            deterministic=False,
        ),
        priority=_BY_NAME,
        tolerance=_BFLOAT16 | {"float16": 5e-3},
    )
    yield Kernel(
        operation="attention",
        name="flex",
        summary="compiled FlexAttention over the block mask",
        not_run_on="a GPU",
        needs=Needs(devices=_CUDA, capability=(7, 0), smallest={"head_dim": 16}),
        priority=10,
    )
    yield Kernel(
        operation="attention",
        name="flex_flash",
        summary="FlexAttention on its FLASH backend (Hopper and Blackwell)",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:flex_flash_attention",
        needs=Needs(
            devices=_CUDA, capability=(9, 0), packages=("flash-attn-4",), deterministic=False
        ),
        priority=5,
        tolerance=_BFLOAT16,
    )
    yield Kernel(
        operation="attention",
        name="varlen",
        summary="FlashAttention over packed documents of varying length",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:varlen_attention",
        needs=Needs(
            devices=_CUDA,
            capability=(8, 0),
            capability_below=(9, 0),
            largest={"head_dim": 256, "masked_window": 0} | _NO_SINKS,
            multiples={"head_dim": 8},
            context_parallel=False,
        ),
        priority=4,
        tolerance=_BFLOAT16,
    )
    # Needs no package (cuDNN comes with torch's wheels) and no dense mask. Not run on a GPU yet.
    yield Kernel(
        operation="attention",
        name="varlen_cudnn",
        summary="cuDNN's attention over packed documents of varying length (Hopper, Blackwell)",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:varlen_cudnn_attention",
        needs=Needs(
            devices=_CUDA,
            capability=(9, 0),
            capability_below=(11, 0),
            largest={"head_dim": 128, "window": 0} | _NO_SINKS,
            multiples={"head_dim": 8},
            context_parallel=False,
            deterministic=False,
        ),
        priority=_BY_NAME,
        tolerance=_BFLOAT16,
    )
    # On Hopper and Blackwell torchtitan requests FlashAttention 3 or 4, installed or not.
    yield Kernel(
        operation="attention",
        name="varlen_fa3",
        summary="FlashAttention 3 over packed documents of varying length (Hopper)",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:varlen_fa3_attention",
        needs=Needs(
            devices=_CUDA,
            capability=(9, 0),
            capability_below=(10, 0),
            packages=("flash-attn-3",),
            largest={"head_dim": 256, "masked_window": 0} | _NO_SINKS,
            multiples={"head_dim": 8},
            context_parallel=False,
        ),
        priority=4,
        tolerance=_BFLOAT16,
    )
    yield Kernel(
        operation="attention",
        name="varlen_fa4",
        summary="FlashAttention 4 over packed documents of varying length (Blackwell)",
        not_run_on="a GPU",
        override="atom_kernels_torch.attention:varlen_fa4_attention",
        needs=Needs(
            devices=_CUDA,
            capability=(10, 0),
            packages=("flash-attn-4",),
            largest={"head_dim": 128, "masked_window": 0} | _NO_SINKS,
            multiples={"head_dim": 8},
            context_parallel=False,
        ),
        priority=4,
        tolerance=_BFLOAT16,
    )
    yield Kernel(
        operation="optimizer_step",
        name="reference",
        summary="torch's Adam and AdamW, one parameter at a time",
        override="atom_kernels_torch.optimizer:for_loop",
        functions={"optimizer_step": f"{__name__}.functions:adamw"},
        tolerance=_OF_PARAMETERS,
    )
    yield Kernel(
        operation="optimizer_step",
        name="foreach",
        summary="torch's Adam and AdamW, one operation at a time for all parameters",
        override="atom_kernels_torch.optimizer:foreach",
        functions={"optimizer_step": f"{__name__}.functions:adamw_foreach"},
        priority=5,
        tolerance=_OF_PARAMETERS,
    )
    yield Kernel(
        operation="optimizer_step",
        name="fused",
        summary="torch's Adam and AdamW, the whole step as one kernel",
        functions={"optimizer_step": f"{__name__}.functions:adamw_fused"},
        priority=10,
        tolerance=_OF_PARAMETERS,
    )
    yield Kernel(
        operation="newton_schulz",
        name="reference",
        summary="torch's, in bfloat16",
        functions=_functions("newton_schulz"),
        tolerance={"bfloat16": 5e-2},
    )
    for operation, what in {
        "attention_projections": "torch's linear; under TP, gathered before and reduced after",
        "cross_entropy": "torch's cross_entropy, vocabulary-parallel under TP",
        "embedding": "torch's embedding",
        "feed_forward": "SwiGLU from three linear layers",
        "gradient_clipping": "torch's, over all dimensions of a layout",
        "grouped_mm": "SwiGLU from three of torch's grouped matrix products",
        "linear": "torch's linear",
        "linear_cross_entropy": "output layer and cross_entropy, in loss.num_chunks chunks",
        "moe_dispatch": "all-to-all of torch.distributed",
        "rms_norm": "torch's rms_norm",
        "rope": "rotary embedding of adjacent pairs, in complex arithmetic",
        "rope_halves": "rotary embedding of the two halves",
    }.items():
        yield Kernel(
            operation=operation,
            name="reference",
            summary=what,
            needs=_NEEDS.get(operation, Needs()),
            functions=_functions(*_WITHOUT_TORCHTITAN.get(operation, (operation,))),
        )


def _functions(*names: str) -> dict[str, str]:
    return {name: f"{__name__}.functions:{name}" for name in names}
