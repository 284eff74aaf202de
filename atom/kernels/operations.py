"""Define the operations that have kernels: what each computes, and what a kernel replaces.

A node is a torchtitan class; its ``Config`` stands in the tree of a ``Trainer.Config``. An
operation without a node is a function, which is replaced by the kernel's function. Both are
referenced by name and never imported, so listing kernels needs no torch. A plugin may provide
kernels for operations that are not in the table; every model is then assumed to have them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        summary: what it computes, in one line.
        node: ``module:Class`` of torchtitan's module; derived classes count, too.
        function: ``module:function`` of an operation that has no node.
        within: operations that contain this one's node. torchtitan refuses to replace both.
        of_parameters: whether it works on parameters and their gradients, in their dtype instead of
            the compute dtype.
        contract: ``module:NAME`` of the :class:`atom.titan.contracts.contract.Contract` that its
            kernels must satisfy; None for a function, which has its contract in
            :data:`atom.titan.contracts.functions.FUNCTIONS`.
        dtype: a fixed compute dtype; None for one of the two above.
    """

    summary: str
    node: str | None = None
    function: str | None = None
    within: tuple[str, ...] = ()
    of_parameters: bool = False
    contract: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        assert (self.node is None) != (self.function is None)

    @property
    def place(self) -> str:
        """The class or function that a kernel replaces: ``module:Class`` or ``module:function``."""
        return self.node or self.function or ""


_COMMON = "torchtitan.models.common"
_CONTRACTS = "atom.titan.contracts"

OPERATIONS: dict[str, Operation] = {
    "attention": Operation(
        summary="softmax(q kᵀ) v within documents, causal",
        node=f"{_COMMON}.attention:FlexAttention",
        contract=f"{_CONTRACTS}.operations:ATTENTION",
    ),
    "attention_projections": Operation(
        summary="the projections of attention to q, k and v, and of its output",
        node=f"{_COMMON}.attention:GQAttention",
    ),
    "cross_entropy": Operation(
        summary="the sum of the tokens' losses, from logits",
        node="torchtitan.components.loss:CrossEntropyLoss",
        within=("linear_cross_entropy",),
        contract=f"{_CONTRACTS}.operations:CROSS_ENTROPY",
    ),
    "embedding": Operation(
        summary="rows of a table, by token",
        node=f"{_COMMON}.embedding:Embedding",
        contract=f"{_CONTRACTS}.operations:EMBEDDING",
    ),
    "feed_forward": Operation(
        summary="SwiGLU: (silu(x W1ᵀ) · x W3ᵀ) W2ᵀ",
        node=f"{_COMMON}.feed_forward:FeedForward",
        contract=f"{_CONTRACTS}.operations:FEED_FORWARD",
    ),
    "gradient_clipping": Operation(
        summary="the norm of all gradients, which are scaled down to training.max_norm",
        function="torchtitan.distributed.utils:clip_grad_norm_",
        of_parameters=True,
    ),
    "grouped_mm": Operation(
        summary="SwiGLU of each expert over its own tokens",
        node=f"{_COMMON}.moe:GroupedExperts",
        contract=f"{_CONTRACTS}.mixture_operations:GROUPED_MM",
    ),
    "linear": Operation(
        summary="x Wᵀ",
        node=f"{_COMMON}.linear:Linear",
        within=("attention_projections", "feed_forward"),
        contract=f"{_CONTRACTS}.operations:LINEAR",
    ),
    "linear_cross_entropy": Operation(
        summary="the sum of the tokens' losses, from hidden states and the output layer",
        node="torchtitan.components.loss:ChunkedLossWrapper",
        contract=f"{_CONTRACTS}.operations:LINEAR_CROSS_ENTROPY",
    ),
    "moe_dispatch": Operation(
        summary="the exchange of tokens with the ranks of their experts",
        node=f"{_COMMON}.token_dispatcher:LocalTokenDispatcher",
        contract=f"{_CONTRACTS}.mixture_operations:MOE_DISPATCH",
    ),
    "newton_schulz": Operation(
        summary="for Muon, a matrix with the same singular vectors and singular values near 1",
        function="atom.titan.optim.muon:newton_schulz",
        dtype="bfloat16",
    ),
    "optimizer_step": Operation(
        summary="the update of the parameters by Adam or AdamW",
        node="torchtitan.components.optimizer:OptimizersContainer",
        of_parameters=True,
        contract=f"{_CONTRACTS}.optimizer_operations:OPTIMIZER_STEP",
    ),
    "rms_norm": Operation(
        summary="x / sqrt(mean(x²) + eps) · weight",
        node=f"{_COMMON}.nn_modules:RMSNorm",
        contract=f"{_CONTRACTS}.operations:RMS_NORM",
    ),
    "rope": Operation(
        summary="rotary embedding of adjacent pairs",
        node=f"{_COMMON}.rope:ComplexRoPE",
        contract=f"{_CONTRACTS}.operations:ROPE",
    ),
    "rope_halves": Operation(
        summary="rotary embedding of the two halves",
        node=f"{_COMMON}.rope:CosSinRoPE",
        contract=f"{_CONTRACTS}.operations:ROPE_HALVES",
    ),
}


def overlap(one: str, other: str) -> str | None:
    """Return the one of two operations that contains the other's node, or None."""
    for inner, outer in ((one, other), (other, one)):
        if inner in OPERATIONS and outer in OPERATIONS[inner].within:
            return outer
    return None
