"""Write the work of a transformer from its published widths, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atom.plan.work import COLUMN, ROW, BlockWork, ModelWork, Product


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
