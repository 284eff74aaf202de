"""Define the contracts of a model's operations: each one's node and formula.

Shape suffixes: B = sequences, L = tokens per sequence, D = width of the model, F = width of the
feed-forward, N = heads, H = width of a head, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from atom.io.references import resolve
from atom.kernels.operations import OPERATIONS
from atom.titan.contracts.contract import Contract, Tensors, as_weight, ids, layer, positions
from atom.titan.contracts.sizes import Sizes

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------------------- attention


def queries_keys_values(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    shape = (sizes.batch, sizes.length)
    return {
        "q_BLNH": make(*shape, sizes.n_heads, sizes.head_dim),
        "k_BLNH": make(*shape, sizes.n_kv_heads, sizes.head_dim),
        "v_BLNH": make(*shape, sizes.n_kv_heads, sizes.head_dim),
    }


@lru_cache(maxsize=8)
def _masks(sizes: Sizes, device: Any, block_size: Any, varlen: bool) -> Any:
    """Return the masks that torchtitan's ``Decoder.get_attention_masks`` makes."""
    from torch.nn.attention.flex_attention import and_masks
    from torchtitan.models.common import attention

    positions_BL = positions(sizes, device)
    if varlen:
        return attention.create_varlen_metadata_for_document(positions_BL)
    seen = [
        attention.get_causal_mask_mod(),
        attention.get_efficient_causal_mask_mod_for_packed_document(positions_BL),
    ]
    if sizes.window:
        seen.append(attention.get_sliding_window_mask_mod(sizes.window))
    return attention.create_attention_mask(
        and_masks(*seen),
        sizes.batch,
        None,
        sizes.length,
        sizes.length,
        device=positions_BL.device,
        BLOCK_SIZE=block_size,
    )


def _attend(module: Any, inputs: Tensors, node: Any, sizes: Sizes) -> torch.Tensor:
    from torchtitan.models.common.attention import VarlenAttention

    varlen = isinstance(node, VarlenAttention.Config)
    block_size = None if varlen else node.block_size
    if varlen and sizes.window:
        module.window_size = (sizes.window - 1, 0)  # as the model sets it
    # Made once: a model shares its masks among its layers.
    masks = _masks(sizes, inputs["q_BLNH"].device, block_size, varlen)
    output: torch.Tensor = module(
        *inputs.values(),
        attention_masks=masks,
        scale=None,
        enable_gqa=sizes.n_heads != sizes.n_kv_heads,
    )
    return output


def _attention(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Attend from each token to itself and to earlier tokens of its document, within its window."""
    import torch

    groups = sizes.n_heads // sizes.n_kv_heads
    q_BLNH = inputs["q_BLNH"]
    k_BLNH, v_BLNH = (
        inputs[name].repeat_interleave(groups, dim=2) for name in ("k_BLNH", "v_BLNH")
    )
    scores_BNLL = torch.einsum("blnh,bmnh->bnlm", q_BLNH, k_BLNH) / sizes.head_dim**0.5
    document_BL = (positions(sizes, q_BLNH.device) == 0).cumsum(dim=1)
    same_B1LL = (document_BL[:, :, None] == document_BL[:, None, :])[:, None]
    seen_B1LL = same_B1LL & torch.ones_like(same_B1LL).tril()
    if sizes.window:
        seen_B1LL &= torch.ones_like(same_B1LL).triu(1 - sizes.window)
    weights_BNLL = scores_BNLL.masked_fill(~seen_B1LL, float("-inf")).softmax(dim=-1)
    return torch.einsum("bnlm,bmnh->blnh", weights_BNLL, v_BLNH)


# ---------------------------------------------------------------------------- the others


def _hidden(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    return {"x_BLD": make(sizes.batch, sizes.length, sizes.dim)}


def _apply(module: Any, inputs: Tensors, _node: Any, _sizes: Sizes) -> torch.Tensor:
    output: torch.Tensor = module(inputs["x_BLD"])
    return output


def _rms_norm(weights: Tensors, inputs: Tensors, _sizes: Sizes) -> torch.Tensor:
    x_BLD = inputs["x_BLD"]
    mean_BL1 = x_BLD.square().mean(dim=-1, keepdim=True)
    return x_BLD / (mean_BL1 + 1e-5).sqrt() * weights["weight"]


def _linear(weights: Tensors, inputs: Tensors, _sizes: Sizes) -> torch.Tensor:
    return inputs["x_BLD"] @ weights["weight"].T


def _feed_forward(weights: Tensors, inputs: Tensors, _sizes: Sizes) -> torch.Tensor:
    x_BLD = inputs["x_BLD"]
    gate_BLF = x_BLD @ weights["w1.weight"].T
    up_BLF = x_BLD @ weights["w3.weight"].T
    return (gate_BLF * gate_BLF.sigmoid() * up_BLF) @ weights["w2.weight"].T


def _embed(module: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    # The input is not a floating-point tensor; a factor on every output stands in for it.
    embedded_BLD: torch.Tensor = module(ids(sizes, inputs["factor_BLD"].device))
    return embedded_BLD * inputs["factor_BLD"]


def _embedding(weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    factor_BLD = inputs["factor_BLD"]
    return weights["weight"][ids(sizes, factor_BLD.device)] * factor_BLD


def queries_and_keys(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    q_and_k = queries_keys_values(sizes, make)
    del q_and_k["v_BLNH"]
    return q_and_k


def _rotate(module: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    import torch

    q_BLNH, k_BLNH = inputs.values()
    return torch.cat(module(q_BLNH, k_BLNH, positions(sizes, q_BLNH.device)), dim=2)


def _rope(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Rotate adjacent pairs by position x 10000^(-2i/H)."""
    import torch

    x_BLNH = torch.cat(list(inputs.values()), dim=2)
    exponents_P = torch.arange(0, sizes.head_dim, 2, device=x_BLNH.device) / sizes.head_dim
    angles_BLP = positions(sizes, x_BLNH.device)[..., None] * 10000.0 ** -exponents_P.double()
    cos_BL1P, sin_BL1P = angles_BLP.cos()[:, :, None], angles_BLP.sin()[:, :, None]
    even_BLNP, odd_BLNP = x_BLNH[..., 0::2], x_BLNH[..., 1::2]
    rotated = (
        even_BLNP * cos_BL1P - odd_BLNP * sin_BL1P,
        even_BLNP * sin_BL1P + odd_BLNP * cos_BL1P,
    )
    return torch.stack(rotated, dim=-1).flatten(-2)


def _rope_halves(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Rotate element i of the first half with element i of the second."""
    import torch

    x_BLNH = torch.cat(list(inputs.values()), dim=2)
    exponents_P = torch.arange(0, sizes.head_dim, 2, device=x_BLNH.device) / sizes.head_dim
    base = 10000.0
    angles_BLP = positions(sizes, x_BLNH.device)[..., None] * base ** -exponents_P.double()
    cos_BL1P, sin_BL1P = angles_BLP.cos()[:, :, None], angles_BLP.sin()[:, :, None]
    first_BLNP, second_BLNP = x_BLNH.chunk(2, dim=-1)
    rotated = (
        first_BLNP * cos_BL1P - second_BLNP * sin_BL1P,
        second_BLNP * cos_BL1P + first_BLNP * sin_BL1P,
    )
    return torch.cat(rotated, dim=-1)


def _logits(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    return {"logits_BLV": make(sizes.batch, sizes.length, sizes.vocab_size)}


def _lose(module: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    logits_BLV = inputs["logits_BLV"]
    loss: torch.Tensor = module(logits_BLV, ids(sizes, logits_BLV.device))[0]
    return loss


def _cross_entropy(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Return the sum of the tokens' losses."""
    logits_BLV = inputs["logits_BLV"]
    labels_BL1 = ids(sizes, logits_BLV.device)[..., None]
    return (logits_BLV.logsumexp(dim=-1, keepdim=True) - logits_BLV.gather(-1, labels_BL1)).sum()


def _hidden_and_head(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    return _hidden(sizes, make) | {"weight_VD": as_weight(make(sizes.vocab_size, sizes.dim))}


def _lose_from_hidden(module: Any, inputs: Tensors, _node: Any, sizes: Sizes) -> torch.Tensor:
    """Call the loss as torchtitan's trainer does.

    The loss gets the output layer and may compute gradients in its forward pass. So run its
    backward pass at once and return the results.
    """
    import torch

    class Trained(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x_BLD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
            vocabulary, width = weight_VD.shape
            head = torch.nn.Linear(width, vocabulary, bias=False, device="meta")
            head.weight = torch.nn.Parameter(weight_VD.detach())
            leaf_BLD = x_BLD.detach().requires_grad_()
            module.set_lm_head(head)
            with torch.enable_grad():
                loss: torch.Tensor = module(leaf_BLD, ids(sizes, x_BLD.device))[0]
                loss.backward()
            ctx.gradients = (leaf_BLD.grad, head.weight.grad)
            return loss.detach()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple((gradient * grad).to(gradient.dtype) for gradient in ctx.gradients)

    found: torch.Tensor = Trained.apply(inputs["x_BLD"], inputs["weight_VD"])
    return found


def _linear_cross_entropy(_weights: Tensors, inputs: Tensors, sizes: Sizes) -> torch.Tensor:
    """Return the sum of the tokens' losses."""
    logits_BLV = inputs["x_BLD"] @ inputs["weight_VD"].T
    return _cross_entropy({}, {"logits_BLV": logits_BLV}, sizes)


ATTENTION = Contract(
    node=lambda config: layer(config).attention.inner_attention,
    inputs=queries_keys_values,
    call=_attend,
    formula=_attention,
)
RMS_NORM = Contract(
    node=lambda config: layer(config).attention_norm,
    inputs=_hidden,
    call=_apply,
    formula=_rms_norm,
)
LINEAR = Contract(
    node=lambda config: layer(config).feed_forward.w1,
    inputs=_hidden,
    call=_apply,
    formula=_linear,
)
FEED_FORWARD = Contract(
    node=lambda config: layer(config).feed_forward,
    inputs=_hidden,
    call=_apply,
    formula=_feed_forward,
)
EMBEDDING = Contract(
    node=lambda config: config.model_spec.model.tok_embeddings,
    inputs=lambda sizes, make: {"factor_BLD": make(sizes.batch, sizes.length, sizes.dim)},
    call=_embed,
    formula=_embedding,
)
ROPE = Contract(
    node=lambda config: layer(config).attention.rope,
    inputs=queries_and_keys,
    call=_rotate,
    formula=_rope,
    float64=False,
)
ROPE_HALVES = Contract(
    node=lambda config: layer(config).attention.rope,
    inputs=queries_and_keys,
    call=_rotate,
    formula=_rope_halves,
    family="qwen",
    float64=False,
)
CROSS_ENTROPY = Contract(
    node=lambda config: config.loss.loss_fn,
    inputs=_logits,
    call=_lose,
    formula=_cross_entropy,
    float64=False,
)
LINEAR_CROSS_ENTROPY = Contract(
    node=lambda config: config.loss,
    inputs=_hidden_and_head,
    call=_lose_from_hidden,
    formula=_linear_cross_entropy,
    float64=False,
)


def contract_of(operation: str) -> Contract | None:
    """Return the contract of an operation; None for an unknown operation or a function.

    A plugin with another operation brings its own :class:`Contract`:
    ``conformance(…).having(operation=…)``.
    """
    known = OPERATIONS.get(operation)
    if known is None or known.contract is None:
        return None
    found: Contract = resolve(known.contract)
    return found
