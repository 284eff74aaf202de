"""Write the work and the memory of a transformer from its published widths, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atom.plan.model import (
    FULL,
    NONE,
    SELECTIVE,
    Activations,
    Block,
    ModelDescription,
    Parameter,
)
from atom.plan.work import COLUMN, ROW, BlockWork, ModelWork, Product

_ELEMENT, _STATISTIC = 2, 4
"""Bytes of an activation, and of a number that normalization or attention keeps."""


def transformer(dims: Mapping[str, Any]) -> ModelWork:
    """Return the work of a transformer.

    Args:
        dims: ``layers``, ``dim``, ``heads``, ``kv_heads``, ``head_dim``, ``ffn_dim``, ``vocab``,
            and where a model has them ``mlp`` (a name with "glu" or "gated" has a gate), ``mla``,
            ``experts``, ``top_k``, ``moe_ffn``, ``shared_experts``, ``dense_layers``, ``mtp``,
            ``sliding_window`` (of every other layer), ``tied``.
    """
    layers, width = dims["layers"], dims["dim"]
    experts = dims.get("experts") or 0
    attention, queries, keys, head = _attention(dims)
    dense = _mlp(width, dims.get("ffn_dim") or 0, gated=_gated(dims))
    sparse = _experts(dims) if experts else ()
    blocks = {}
    window = dims.get("sliding_window") or 0
    first = dims.get("dense_layers") or 0 if experts else layers
    for layer in range(layers + (dims.get("mtp") or 0)):
        blocks[f"layers.{layer}"] = BlockWork(
            products=(*attention, *(dense if layer < first else sparse)),
            attention_width=queries,
            keys_width=keys,
            head_width=head,
            window=window if layer % 2 == 0 else 0,
        )
    return ModelWork(blocks, width, dims["vocab"], bool(dims.get("tied")))


def described(dims: Mapping[str, Any]) -> ModelDescription:
    """Return the description of a dense transformer, with the activations of torchtitan's Llama.

    They are those that :mod:`atom.titan.planning.tracing` finds in the model itself.
    """
    width, vocab, heads = dims["dim"], dims["vocab"], dims["heads"]
    plan = transformer(dims)
    parameters = [Parameter("tok_embeddings.weight", "tok_embeddings", (vocab, width), 0)]
    blocks: dict[str, Block] = {}
    for part, found in plan.blocks.items():
        for number, each in enumerate(found.products):
            shape: tuple[int, ...] = (each.outputs, each.inputs)
            axis = {COLUMN: 0, ROW: 1}.get(each.split)
            if each.experts:
                shape = (each.experts, *shape)
                axis = None if axis is None else axis + 1
            name = f"{part}.{number}.weight"
            parameters.append(Parameter(name, part, shape, axis, bool(each.experts)))
        parameters += [Parameter(f"{part}.norm{n}.weight", part, (width,)) for n in (1, 2)]
        blocks[part] = _block(found, width, heads, gated=_gated(dims))
    uses = 2 if dims.get("tied") else 1
    parameters[0] = Parameter(
        "tok_embeddings.weight", "tok_embeddings", (vocab, width), 0, uses=uses
    )
    parameters.append(Parameter("norm.weight", "norm", (width,)))
    groups: dict[tuple[str, ...], bool] = {("tok_embeddings", "norm", "lm_head"): True}
    if not dims.get("tied"):
        parameters.append(Parameter("lm_head.weight", "lm_head", (vocab, width), 0))
        groups = {("tok_embeddings",): False, ("norm", "lm_head"): True}
    return ModelDescription(tuple(parameters), blocks, width, vocab, groups)


def _block(found: BlockWork, width: int, heads: int, *, gated: bool) -> Block:
    """Return what a block keeps.

    Without checkpointing: the inputs of both norms and of both column-parallel products, queries
    after rotation and attention's output (twice: with its input), keys and values, and four tensors
    of a gated hidden width (two without a gate). Selective checkpointing keeps every other product.
    """
    inner = [each for each in found.products if each.split == ROW][-1]
    hidden = inner.inputs * inner.top_k
    tensors = 4 if gated else 2
    attention = 4.0 * found.attention_width + 2.0 * found.keys_width + _STATISTIC * heads
    stream = float(_ELEMENT * width)
    whole = Activations(
        residual=2 * stream + 2 * _STATISTIC,
        tensor=attention + _ELEMENT * tensors * hidden,
        gathered=2 * stream,
    )
    peak = Activations(
        residual=4 * stream + 2 * _STATISTIC,
        tensor=attention + _ELEMENT * 1.5 * tensors * hidden,
        gathered=2 * stream,
    )
    saved = {
        NONE: whole,
        SELECTIVE: Activations(
            residual=stream,
            tensor=attention + _ELEMENT * hidden,
            gathered=stream,
            scattered=2 * stream,
        ),
        FULL: Activations(residual=stream),
    }
    working = dict.fromkeys(saved, peak)
    flops = 2.0 * sum(each.inputs * each.outputs * each.top_k for each in found.products)
    return Block(saved, working, flops, found.attention_width, round(found.keys_width))


def _gated(dims: Mapping[str, Any]) -> bool:
    name = str(dims.get("mlp") or "swiglu")
    return "no gate" not in name and ("glu" in name or "gated" in name)


def _attention(dims: Mapping[str, Any]) -> tuple[tuple[Product, ...], float, float, int]:
    width, heads = dims["dim"], dims["heads"]
    mla = dims.get("mla")
    if mla:
        qk, value = mla["qk_nope"] + mla["qk_rope"], mla["v"]
        latent = (
            Product(width, mla["q_lora"]),
            Product(mla["q_lora"], heads * qk, COLUMN),
            Product(width, mla["kv_lora"] + mla["qk_rope"]),
            Product(mla["kv_lora"], heads * (mla["qk_nope"] + value), COLUMN),
            Product(heads * value, width, ROW),
        )
        return latent, heads * (qk + value) / 2, heads * (qk + value), qk
    head = dims.get("head_dim") or width // heads
    queries, keys = heads * head, 2 * dims["kv_heads"] * head
    products = (Product(width, queries + keys, COLUMN), Product(queries, width, ROW))
    return products, queries, keys, head


def _experts(dims: Mapping[str, Any]) -> tuple[Product, ...]:
    width, experts = dims["dim"], dims["experts"]
    hidden = dims.get("moe_ffn") or dims["ffn_dim"]
    routed = _mlp(width, hidden, gated=True, experts=experts, top_k=dims["top_k"])
    shared = _mlp(width, hidden * (dims.get("shared_experts") or 0), gated=True)
    return (*routed, *(product for product in shared if product.numel), Product(width, experts))


def _mlp(
    width: int, hidden: int, *, gated: bool, experts: int = 0, top_k: int = 1
) -> tuple[Product, ...]:
    up = Product(width, hidden * (2 if gated else 1), COLUMN, experts, top_k)
    return up, Product(hidden, width, ROW, experts, top_k)
