"""Third-party kernels, each optional.

They are Liger-Kernel, QuACK, cut-cross-entropy, torchao, DeepEP, and the overrides that torchtitan
ships, one of them in Helion.

ATOM has run none of them on a GPU. Therefore their priority is below that of the references:
``kernels=auto`` selects none, names do. Each one's needs are those that its package states or
checks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from atom.plugin import Kernel, Needs, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""

_UNMEASURED = -20
"""Below ATOM's Triton kernels, which are not measured either."""

_CUDA = ("cuda",)
_LIGERS_WIDEST = 65536
"""Largest row of one program; Liger raises an error for wider ones."""
_TRITON = "triton>=3"
_ALL = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}
_HALF = {"bfloat16": 2e-2, "float16": 3e-3}
_BFLOAT16 = {"bfloat16": 3e-2}
_FLOAT8 = {"bfloat16": 0.1}
_FLOAT8_TENSORWISE = {"bfloat16": 0.15}
"""Its gradients are in e5m2, with two bits of mantissa; e4m3 has three."""

_NVFP4 = {"bfloat16": 0.3}
"""Four bits; the sizes of its errors have not been measured."""


@hookimpl
def atom_kernels() -> Iterator[Kernel]:
    yield from _liger()
    yield from _quack()
    yield _kernel(
        "linear_cross_entropy",
        "cut_cross_entropy",
        "output layer and loss in tiles; gradients too small for the dtype are skipped",
        "cut_cross_entropy:cut_linear_cross_entropy",
        Needs(
            devices=_CUDA,
            capability=(8, 0),
            packages=("cut-cross-entropy>=25.1.1,<26", _TRITON),
            tensor_parallel=False,
        ),
        _HALF,
        functions=_of("cut_functions", "linear_cross_entropy"),
    )
    yield from _titan()
    yield from _float8()
    yield from _block_scaled()
    yield from _deepep()


def _liger() -> Iterator[Kernel]:
    packages = ("liger-kernel>=0.8.5,<0.9", _TRITON)
    # Two of the kernels use features that Triton's interpreter lacks: non-integer numbers as
    # arguments, and CUDA's reciprocal square root.
    on_cuda = Needs(devices=_CUDA, capability=(8, 0), packages=packages)
    anywhere = Needs(triton=True, capability=(8, 0), packages=packages)
    loss = Needs(triton=True, capability=(8, 0), packages=packages, tensor_parallel=False)

    def kernel(
        operation: str, summary: str, name: str, needs: Needs, function: str | None = None
    ) -> Kernel:
        return _kernel(
            operation,
            "liger",
            f"Liger-Kernel: {summary}",
            f"liger:{name}",
            needs,
            _ALL,
            functions=_of("liger_functions", function or operation),
        )

    yield kernel(
        "rms_norm",
        "one pass over each row, all of it in float32",
        "liger_rms_norm",
        replace(on_cuda, largest={"dim": _LIGERS_WIDEST}),
    )
    yield kernel(
        "rope_halves", "the two halves, q and k in one launch", "liger_rope_halves", anywhere
    )
    yield kernel(
        "feed_forward",
        "silu(gate) · up in one kernel",
        "liger_feed_forward",
        replace(on_cuda, largest={"hidden_dim": _LIGERS_WIDEST}),
        "silu_mul",
    )
    yield kernel("cross_entropy", "the gradient overwrites the logits", "liger_cross_entropy", loss)
    yield kernel(
        "linear_cross_entropy",
        "output layer and loss in chunks of rows",
        "liger_linear_cross_entropy",
        loss,
    )


def _quack() -> Iterator[Kernel]:
    def kernel(
        operation: str,
        summary: str,
        *,
        multiples: Mapping[str, int] | None = None,
        tensor_parallel: bool = True,
        tolerance: Mapping[str, float] = _ALL,
    ) -> Kernel:
        needs = Needs(
            devices=_CUDA,
            capability=(9, 0),
            packages=("quack-kernels>=0.6.5,<0.7",),
            multiples=multiples or {},
            tensor_parallel=tensor_parallel,
        )
        return _kernel(
            operation,
            "quack",
            f"QuACK: {summary}",
            f"quack:quack_{operation}",
            needs,
            tolerance,
            functions=_of("quack_functions", operation),
        )

    yield kernel("rms_norm", "one pass over each row, by clusters of thread blocks")
    yield kernel("cross_entropy", "one pass over each row of logits", tensor_parallel=False)
    yield kernel(
        "linear_cross_entropy",
        "output layer and loss in chunks of rows, sums in float32",
        multiples={"dim": 8, "vocab_size": 8},
        tensor_parallel=False,
        tolerance=_HALF,
    )


def _titan() -> Iterator[Kernel]:
    """Yield torchtitan's own overrides, which need no code here."""
    swiglu, rope = "torchtitan.overrides.fused_swiglu", "torchtitan.overrides.helion_rope"
    triton = Needs(devices=_CUDA, capability=(8, 0), packages=(_TRITON,))
    helion = Needs(devices=_CUDA, capability=(8, 0), packages=("helion>=1.5,<2",))
    yield _kernel(
        "feed_forward",
        "titan_fused",
        "torchtitan: gate and up as one weight and one product, silu · mul in Triton",
        f"{swiglu}:fused_swiglu",
        triton,
        _ALL,
    )
    yield _kernel(
        "grouped_mm",
        "titan_fused",
        "torchtitan: gate and up of the experts as one grouped product, silu · mul in Triton",
        f"{swiglu}:fused_grouped_experts",
        # torch's grouped product requires rows at multiples of 16 bytes.
        replace(triton, multiples={"dim": 8, "hidden_dim": 8}),
        _BFLOAT16,
    )
    for operation, what in (
        ("attention_projections", "of q, k and v, and of attention's output"),
        ("feed_forward", "of gate and up, and of down"),
    ):
        yield replace(
            _kernel(
                operation,
                "dist_gemm",
                f"torchtitan: products {what}, fused with what TP gathers and reduces",
                f"dist_gemm:{operation}",
                Needs(
                    devices=_CUDA,
                    capability=(8, 0),
                    packages=("torchtitan>=0.3",),
                    context_parallel=False,
                    tensor_parallel_only=True,
                ),
                _BFLOAT16,
            ),
            before_sharding=True,
        )
    for operation, function, what in (
        ("rope", "helion_complex_rope", "adjacent pairs"),
        ("rope_halves", "helion_cos_sin_rope", "the two halves"),
    ):
        yield _kernel(
            operation,
            "helion",
            f"torchtitan, in Helion: {what}, positions gathered in the kernel",
            f"{rope}:{function}",
            helion,
            _ALL,
        )


def _float8() -> Iterator[Kernel]:
    tensorwise = "a scale for each tensor"
    for name, what in (
        ("float8_rowwise", "a scale for each row and column"),
        ("float8_rowwise_gw_hp", "a scale for each row and column, weights' gradients in bfloat16"),
        ("float8_tensorwise", tensorwise),
        ("float8_tensorwise_gathered", f"{tensorwise}; FSDP gathers the weights in float8"),
    ):
        yield _kernel(
            "linear",
            name,
            f"torchao: products in float8, {what}",
            f"float8:{name}",
            Needs(
                devices=_CUDA,
                capability=(8, 9),
                packages=("torchao>=0.18,<0.19",),
                # The shards' sizes, too; a layer of another size is left unchanged.
                multiples={"dim": 16, "head_dim": 16, "hidden_dim": 16},
                # torchtitan makes a DTensor of the weight's inner tensor, without its wrapper.
                tensor_parallel=name != "float8_tensorwise_gathered",
            ),
            _FLOAT8_TENSORWISE if tensorwise in what else _FLOAT8,
        )


def _block_scaled() -> Iterator[Kernel]:
    for name, what, unit, tolerance in (
        ("mxfp8", "MXFP8, a scale for each 32 elements", 32, _FLOAT8),
        ("nvfp4", "NVFP4, a scale for each 16 elements, gradients rounded at random", 128, _NVFP4),
    ):
        yield _kernel(
            "linear",
            name,
            f"torchao: products in {what}",
            f"block_scaled:{name}",
            Needs(
                devices=_CUDA,
                capability=(10, 0),
                packages=("torchao>=0.18,<0.19",),
                # A layer of another size is left unchanged.
                multiples={"dim": unit, "hidden_dim": unit},
                deterministic=name == "mxfp8",
                # torchtitan's layer of NVFP4 renames the argument that layouts name: not tried.
                tensor_parallel=name == "mxfp8",
            ),
            tolerance,
        )


def _deepep() -> Iterator[Kernel]:
    for name, package, what in (
        ("deepep", "deep_ep>=2", "one buffer for NVLink and RDMA"),
        ("hybridep", "deep_ep>=1.2", "its branch hybrid-ep, for NVLink of a whole rack"),
    ):
        yield _kernel(
            "moe_dispatch",
            name,
            f"DeepEP: {what}",
            f"deepep:{name}",
            Needs(devices=_CUDA, capability=(9, 0), packages=(package,), expert_parallel=True),
            _BFLOAT16,
        )


def _kernel(
    operation: str,
    name: str,
    summary: str,
    override: str,
    needs: Needs,
    tolerance: Mapping[str, float],
    *,
    functions: Mapping[str, str] | None = None,
) -> Kernel:
    return Kernel(
        operation=operation,
        name=name,
        summary=summary,
        not_run_on="a GPU",
        functions=functions or {},
        override=override if override.startswith("torchtitan.") else f"{__name__}.{override}",
        needs=needs,
        priority=_UNMEASURED,
        tolerance=tolerance,
    )


def _of(module: str, function: str) -> dict[str, str]:
    return {function: f"{__name__}.{module}:{function}"}
