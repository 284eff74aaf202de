"""Define operations as functions of tensors: signature, formula and amount of work.

A kernel that needs no torchtitan declares such functions (:attr:`atom.plugin.Kernel.functions`), so
that it can be compared and timed without torchtitan. :mod:`atom.titan.contracts.work` counts the
work.

Shape suffixes as in :mod:`atom.titan.contracts.operations`; R = B L rows, P = H / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atom.kernels import operations as core
from atom.plugin import Kernel
from atom.titan.contracts import operations, optimizer_operations, work
from atom.titan.contracts.contract import ADAMW, Tensors, as_weight, ids, positions
from atom.titan.contracts.mixture_operations import grouped_mm, rows_per_expert
from atom.titan.contracts.sizes import EXPERTS, Sizes
from atom.titan.contracts.work import Work

if TYPE_CHECKING:
    import torch

Make = Callable[..., "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Function:
    """The contract of a function.

    Attributes:
        operation: the operation that it is, or is a part of.
        signature: the function's signature, as text.
        inputs: makes the floating-point inputs, by name. Gradients are taken of these.
        others: makes the other arguments, on a device; they follow the inputs.
        formula: computes the function's result from the same arguments, by definition.
        forward: the work of the output.
        backward: the work of the gradients, given the output's; None if there is no backward pass.
        shown: the relevant sizes, as text.
        call: calls the function with the inputs and the others, and returns the result.
    """

    operation: str
    signature: str
    inputs: Callable[[Sizes, Make], Tensors]
    formula: Callable[..., Any]
    forward: Callable[[Sizes], Work]
    backward: Callable[[Sizes], Work] | None
    shown: Callable[[Sizes], str]
    others: Callable[[Sizes, Any], tuple[Any, ...]] = lambda _sizes, _device: ()
    call: Callable[..., Any] = lambda function, *arguments: function(*arguments)


def functions_of(kernel: Kernel) -> dict[str, str]:
    """Return the functions of a kernel, by contract.

    They are those that it declares, and the one that replaces torchtitan's if its operation is a
    function.
    """
    found = dict(kernel.functions)
    known = core.OPERATIONS.get(kernel.operation)
    if kernel.override is not None and known is not None and known.function is not None:
        found.setdefault(kernel.operation, kernel.override)
    return found


def _wide(sizes: Sizes) -> str:
    return f"{sizes.rows} × {sizes.dim}"


EPS = 1e-5


# ---------------------------------------------------------------------------- RMSNorm


def _rms_norm(x_RD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    return x_RD / (x_RD.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight_D


def _add_rms_norm(
    x_RD: torch.Tensor, residual_RD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total_RD = x_RD + residual_RD
    return _rms_norm(total_RD, weight_D, eps), total_RD


# ---------------------------------------------------------------------------- RoPE


def _angles(sizes: Sizes, device: Any) -> torch.Tensor:
    import torch

    exponents_P = torch.arange(0, sizes.head_dim, 2, device=device).double() / sizes.head_dim
    return torch.arange(sizes.length, device=device)[:, None] * 10000.0**-exponents_P


def _complex_cache(sizes: Sizes, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    angles_LP = _angles(sizes, device)
    cache = torch.polar(torch.ones_like(angles_LP), angles_LP).to(torch.complex64)
    return cache, positions(sizes, device)


def _real_cache(sizes: Sizes, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    angles_LP = _angles(sizes, device)
    halves = [angles_LP.cos()] * 2 + [angles_LP.sin()] * 2
    return torch.cat(halves, dim=-1).float(), positions(sizes, device)


def _rope(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache_LP: torch.Tensor, positions_BL: torch.Tensor
) -> list[torch.Tensor]:
    import torch

    turn_BL1P = cache_LP[positions_BL][:, :, None]
    rotated = []
    for x_BLNH in (q_BLNH, k_BLNH):
        even, odd = x_BLNH[..., 0::2], x_BLNH[..., 1::2]
        cos, sin = turn_BL1P.real, turn_BL1P.imag
        pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        rotated.append(pairs.flatten(-2))
    return rotated


def _rope_halves(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor
) -> list[torch.Tensor]:
    import torch

    cos, sin = cache[positions_BL][:, :, None].chunk(2, dim=-1)
    rotated = []
    for x_BLNH in (q_BLNH, k_BLNH):
        first, second = x_BLNH.chunk(2, dim=-1)
        rotated.append(x_BLNH * cos + torch.cat((-second, first), dim=-1) * sin)
    return rotated


def _heads(sizes: Sizes) -> str:
    return f"{sizes.rows} × {sizes.n_heads}+{sizes.n_kv_heads} × {sizes.head_dim}"


# ---------------------------------------------------------------------------- feed-forward


def _silu_mul(gate_RF: torch.Tensor, up_RF: torch.Tensor) -> torch.Tensor:
    return gate_RF * gate_RF.sigmoid() * up_RF


def _feed_forward(
    x_RD: torch.Tensor, w1_FD: torch.Tensor, w2_DF: torch.Tensor, w3_FD: torch.Tensor
) -> torch.Tensor:
    return _silu_mul(x_RD @ w1_FD.T, x_RD @ w3_FD.T) @ w2_DF.T


# ---------------------------------------------------------------------------- embedding and loss


def _cross_entropy(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
    return (logits_RV.logsumexp(dim=-1) - logits_RV.gather(-1, labels_R[:, None])[:, 0]).sum()


def _linear_cross_entropy(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    return _cross_entropy(x_RD @ weight_VD.T, labels_R)


def _labels(sizes: Sizes, device: Any) -> tuple[torch.Tensor]:
    return (ids(sizes, device).flatten(),)


# ---------------------------------------------------------------------------- attention


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, length, n_heads, head_dim = q.shape
    sizes = Sizes(
        batch=batch, length=length, n_heads=n_heads, n_kv_heads=k.shape[2], head_dim=head_dim
    )
    contract = operations.ATTENTION
    return contract.formula({}, {"q_BLNH": q, "k_BLNH": k, "v_BLNH": v}, sizes)


# ---------------------------------------------------------------------------- the optimizer


def _moments(sizes: Sizes, make: Make) -> Tensors:
    shape = sizes.hidden_dim, sizes.dim
    inputs = {name: make(*shape) for name in ("weight", "gradient", "mean", "square")}
    return inputs | {"square": inputs["square"].square()}


def _gradients(sizes: Sizes, make: Make) -> Tensors:
    return {"matrix": make(sizes.hidden_dim, sizes.dim), "vector": make(sizes.dim)}


def _matrix(sizes: Sizes) -> str:
    return f"{sizes.hidden_dim} × {sizes.dim}"


FUNCTIONS: dict[str, Function] = {
    "rms_norm": Function(
        operation="rms_norm",
        signature="(x_RD, weight_D, eps) -> y_RD",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "weight": make(sizes.dim),
        },
        others=lambda _sizes, _device: (EPS,),
        formula=_rms_norm,
        forward=work.of_norm(passes=2, flops=4, weights=1),
        backward=work.of_norm(passes=3, flops=8, weights=2),
        shown=_wide,
    ),
    "add_rms_norm": Function(
        operation="rms_norm",
        signature="(x_RD, residual_RD, weight_D, eps) -> rms_norm(x + residual), x + residual",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "residual": make(sizes.rows, sizes.dim),
            "weight": make(sizes.dim),
        },
        others=lambda _sizes, _device: (EPS,),
        formula=_add_rms_norm,
        forward=work.of_norm(passes=4, flops=5, weights=1),
        # Both inputs have the same gradient; it is written twice.
        backward=work.of_norm(passes=5, flops=9, weights=2),
        shown=_wide,
    ),
    "rope": Function(
        operation="rope",
        signature="(q_BLNH, k_BLNH, complex cache_LP, positions_BL) -> q, k",
        inputs=operations.queries_and_keys,
        others=_complex_cache,
        formula=_rope,
        forward=work.of_rope(lambda sizes: sizes.head_dim),
        backward=work.of_rope(lambda sizes: sizes.head_dim),
        shown=_heads,
    ),
    "rope_halves": Function(
        operation="rope_halves",
        signature="(q_BLNH, k_BLNH, cache of L × 2H: cosines, sines, positions_BL) -> q, k",
        inputs=operations.queries_and_keys,
        others=_real_cache,
        formula=_rope_halves,
        forward=work.of_rope(lambda sizes: 2 * sizes.head_dim),
        backward=work.of_rope(lambda sizes: 2 * sizes.head_dim),
        shown=_heads,
    ),
    "silu_mul": Function(
        operation="feed_forward",
        signature="(gate_RF, up_RF) -> silu(gate) · up",
        inputs=lambda sizes, make: {
            "gate": make(sizes.rows, sizes.hidden_dim),
            "up": make(sizes.rows, sizes.hidden_dim),
        },
        formula=_silu_mul,
        forward=work.of_silu_mul(passes=3, flops=5),
        backward=work.of_silu_mul(passes=5, flops=10),
        shown=lambda sizes: f"{sizes.rows} × {sizes.hidden_dim}",
    ),
    "feed_forward": Function(
        operation="feed_forward",
        signature="(x_RD, w1_FD, w2_DF, w3_FD) -> y_RD",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "w1": as_weight(make(sizes.hidden_dim, sizes.dim)),
            "w2": as_weight(make(sizes.dim, sizes.hidden_dim)),
            "w3": as_weight(make(sizes.hidden_dim, sizes.dim)),
        },
        formula=_feed_forward,
        forward=work.of_feed_forward(products=3, flops=5, passes=2, weights=3),
        backward=work.of_feed_forward(products=6, flops=10, passes=3, weights=6),
        shown=lambda sizes: f"{_wide(sizes)} × {sizes.hidden_dim}",
    ),
    "grouped_mm": Function(
        operation="grouped_mm",
        signature="(x_RD, w1_EFD, w2_EDF, w3_EFD, rows_E) -> y_RD, rows sorted by expert",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "w1": as_weight(make(EXPERTS, sizes.hidden_dim, sizes.dim)),
            "w2": as_weight(make(EXPERTS, sizes.dim, sizes.hidden_dim)),
            "w3": as_weight(make(EXPERTS, sizes.hidden_dim, sizes.dim)),
        },
        others=lambda sizes, device: (rows_per_expert(sizes, device),),
        formula=grouped_mm,
        forward=work.of_feed_forward(products=3, flops=5, passes=2, weights=3 * EXPERTS),
        backward=work.of_feed_forward(products=6, flops=10, passes=3, weights=6 * EXPERTS),
        shown=lambda sizes: f"{EXPERTS} experts: {_wide(sizes)} × {sizes.hidden_dim}",
    ),
    "linear": Function(
        operation="linear",
        signature="(x_RD, weight_FD) -> x Wᵀ",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "weight": as_weight(make(sizes.hidden_dim, sizes.dim)),
        },
        formula=lambda x_RD, weight_FD: x_RD @ weight_FD.T,
        forward=work.of_linear(products=1, inputs=1, outputs=1, weights=1),
        backward=work.of_linear(products=2, inputs=2, outputs=1, weights=2),
        shown=lambda sizes: f"{_wide(sizes)} × {sizes.hidden_dim}",
    ),
    "embedding": Function(
        operation="embedding",
        signature="(weight_VD, ids_BL) -> rows_BLD",
        inputs=lambda sizes, make: {"weight": make(sizes.vocab_size, sizes.dim)},
        others=lambda sizes, device: (ids(sizes, device),),
        formula=lambda weight_VD, ids_BL: weight_VD[ids_BL],
        forward=work.of_embedding,
        backward=work.of_embedding_backward,
        shown=lambda sizes: f"{sizes.rows} of {sizes.vocab_size} × {sizes.dim}",
    ),
    "cross_entropy": Function(
        operation="cross_entropy",
        signature="(logits_RV, labels_R) -> the sum of the rows' losses",
        inputs=lambda sizes, make: {"logits": make(sizes.rows, sizes.vocab_size)},
        others=_labels,
        formula=_cross_entropy,
        forward=work.of_cross_entropy(passes=1),
        backward=work.of_cross_entropy(passes=2),
        shown=lambda sizes: f"{sizes.rows} × {sizes.vocab_size}",
    ),
    "linear_cross_entropy": Function(
        operation="linear_cross_entropy",
        signature="(x_RD, weight_VD, labels_R) -> the sum of the rows' losses",
        inputs=lambda sizes, make: {
            "x": make(sizes.rows, sizes.dim),
            "weight": as_weight(make(sizes.vocab_size, sizes.dim)),
        },
        others=_labels,
        formula=_linear_cross_entropy,
        forward=work.of_linear_cross_entropy(products=1, copies=1),
        backward=work.of_linear_cross_entropy(products=2, copies=2),
        shown=lambda sizes: f"{_wide(sizes)} × {sizes.vocab_size}",
    ),
    "attention": Function(
        operation="attention",
        signature="(q_BLNH, k_BLNH, v_BLNH) -> out_BLNH, causal, one document",
        inputs=operations.queries_keys_values,
        formula=_attention,
        forward=work.of_attention(products=2, of_q=2, of_kv=2),
        backward=work.of_attention(products=5, of_q=4, of_kv=4),
        shown=lambda sizes: (
            f"{sizes.batch} × {sizes.length} × {sizes.n_heads}/{sizes.n_kv_heads} "
            f"× {sizes.head_dim}"
        ),
    ),
    "optimizer_step": Function(
        operation="optimizer_step",
        signature=(
            "(weight_FD, gradient_FD, mean_FD, square_FD, step, lr, betas, eps, weight_decay) "
            "-> weight, mean, square, changed in place"
        ),
        inputs=_moments,
        others=lambda _sizes, _device: (2, *ADAMW.values()),
        formula=optimizer_operations.adamw,
        forward=work.of_adamw,
        backward=None,
        shown=_matrix,
    ),
    "gradient_clipping": Function(
        operation="gradient_clipping",
        signature=(
            "(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None, "
            "pp_mesh=None, ep_enabled=False) -> the norm of their gradients, which are changed in "
            "place"
        ),
        inputs=_gradients,
        formula=optimizer_operations.gradient_clipping,
        forward=work.of_gradient_clipping,
        backward=None,
        shown=lambda sizes: f"{_matrix(sizes)} and {sizes.dim}",
        call=optimizer_operations.clip,
    ),
    "newton_schulz": Function(
        operation="newton_schulz",
        signature="(matrix_FD, coefficients, steps, eps) -> bfloat16 matrix_FD",
        inputs=lambda sizes, make: {"matrix": make(sizes.hidden_dim, sizes.dim)},
        others=lambda _sizes, _device: (
            optimizer_operations.COEFFICIENTS,
            optimizer_operations.ITERATIONS,
            1e-7,
        ),
        formula=optimizer_operations.newton_schulz,
        forward=work.of_newton_schulz(optimizer_operations.ITERATIONS),
        backward=None,
        shown=_matrix,
    ),
}
