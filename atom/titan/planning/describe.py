"""Read a :class:`~atom.plan.model.ModelDescription` from the model that a run would build.

The model is built on the meta device from the architecture's config, with the sharding that it
declares. The code names no architecture and contains no formula for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from spmd_types import Shard
from torch import nn
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.models.common.attention import (
    FlexAttention,
    ScaledDotProductAttention,
    VarlenAttention,
)
from torchtitan.models.common.moe import MoE
from torchtitan.tools.utils import set_default_dtype

from atom.plan import model as plan
from atom.plan.model import Activations, Block, ModelDescription, Parameter
from atom.titan.lora.adapt import freeze, is_adapter
from atom.titan.planning.tracing import (
    COLUMN,
    ROW,
    EvenExperts,
    FusedRMSNorm,
    InnerAttention,
    trace,
)

TOKENS = 256
"""Tokens of the traced sequence. Activations are proportional to it, attention's rows included."""

_CHECKPOINTING: dict[str, Any] = {
    plan.NONE: None,
    # The meta device's random state cannot be saved, and nothing depends on it here.
    plan.SELECTIVE: SelectiveAC.Config(preserve_rng_state=False),
    plan.FULL: FullAC.Config(preserve_rng_state=False),
}


def describe(config: Any, *, compute_dtype: str = "bfloat16") -> ModelDescription:
    """Describe the model of ``config``.

    Args:
        config: a torchtitan ``Decoder.Config`` with its sharding set (``update_from_config``).
        compute_dtype: the dtype of activations.
    """
    dtype = getattr(torch, compute_dtype)
    with torch.device("meta"), set_default_dtype(dtype):
        model = config.build()
    parameters = tuple(_parameters(model))
    blocks: dict[str, Block] = {}
    routed: dict[str, float] = {}
    known: dict[tuple[Any, ...], Block] = {}
    for name, block in model.layers.named_children():
        part = f"layers.{name}"
        moe = next((module for module in block.modules() if isinstance(module, MoE)), None)
        if moe is not None:
            routed[part] = float(moe.router.top_k * config.dim * dtype.itemsize)
        # Plans treat blocks of the same classes and shapes as equal.
        shape = tuple((n, type(m).__name__) for n, m in block.named_modules())
        key = (shape, tuple(tuple(p.shape) for p in block.parameters()))
        if key not in known:
            known[key] = _block(block, config.dim, dtype)
        blocks[part] = known[key]
    return ModelDescription(
        parameters=parameters,
        blocks=blocks,
        width=config.dim,
        vocab_size=config.vocab_size,
        groups=_groups(model),
        activation_bytes=dtype.itemsize,
        routed=routed,
        outputs=getattr(config, "outputs", 1),
    )


def _parameters(model: nn.Module) -> Iterator[Parameter]:
    seen: set[int] = set()
    adapters = any(is_adapter(name) for name, _ in model.named_parameters())
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    for prefix, module in model.named_modules():
        sharding = getattr(module, "_sharding_config", None)
        layouts = sharding.state_shardings if sharding is not None else {}
        experts = getattr(module, "num_experts", 0) if "inner_experts" in prefix else 0
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            axes = {str(axis): kind for axis, kind in _axes(layouts.get(name)).items()}
            split = axes.get("tp")
            full = f"{prefix}.{name}" if prefix else name
            words = full.split(".")
            yield Parameter(
                name=full,
                part=".".join(words[:2]) if words[0] == "layers" else words[0],
                shape=tuple(parameter.shape),
                tensor_dim=split.dim % parameter.dim() if isinstance(split, Shard) else None,
                expert=bool(experts) and parameter.shape[0] == experts,
                uses=uses[id(parameter)],
                trained=not adapters or is_adapter(full),
            )


def _axes(layout: Any) -> dict[Any, Any]:
    return {} if layout is None else layout.per_axis_spmd_types()


def _groups(model: Any) -> dict[tuple[str, ...], bool]:
    """Return the parts that torchtitan's ``apply_fsdp_to_decoder`` gathers together."""
    if model.enable_weight_tying:
        return {("tok_embeddings", "norm", "lm_head"): True}
    return {("tok_embeddings",): False, ("norm", "lm_head"): True}


def _block(block: nn.Module, width: int, dtype: torch.dtype) -> Block:
    flops = 0.0
    for module in block.modules():
        if isinstance(module, nn.Linear):
            flops += 2.0 * module.weight.numel()
        if isinstance(module, MoE):
            for weight in module.routed_experts.parameters():
                if weight.dim() == 3:
                    flops += 2.0 * weight[0].numel() * module.router.top_k
    saved: dict[str, Activations] = {}
    working: dict[str, Activations] = {}
    _stand_in(block)
    block.requires_grad_(True)
    if any(is_adapter(name) for name, _ in block.named_parameters()):
        freeze(block)
    for mode, policy in _CHECKPOINTING.items():
        wrapped = block if policy is None else policy.build(dump_folder="")._wrap_block(block)
        roles = _roles(block)
        inputs = torch.empty((1, TOKENS, width), device="meta", dtype=dtype, requires_grad=True)
        positions = torch.empty((1, TOKENS), device="meta", dtype=torch.int64)
        saved[mode], working[mode] = trace(wrapped, block, inputs, positions, roles)
        block.zero_grad(set_to_none=True)
    attentions = [module for module in block.modules() if isinstance(module, InnerAttention)]
    rows = sum(role == ROW for role in roles.values())
    # torchtitan's policy keeps the output of a reduce-scatter.
    saved[plan.SELECTIVE] += Activations(scattered=float(rows * width * dtype.itemsize))
    return Block(
        saved=saved,
        working=working,
        flops=flops,
        attention_width=sum(attention.width for attention in attentions),
        keys_width=sum(attention.keys_width for attention in attentions),
    )


def _roles(block: nn.Module) -> dict[nn.Module, int]:
    """Return the linear layers that TP shards, and the dimension it shards."""
    roles: dict[nn.Module, int] = {}
    for module in block.modules():
        sharding = getattr(module, "_sharding_config", None)
        if not isinstance(module, nn.Linear) or sharding is None:
            continue
        split = _axes(sharding.state_shardings.get("weight"))
        kind = next((kind for axis, kind in split.items() if str(axis) == "tp"), None)
        if isinstance(kind, Shard):
            roles[module] = ROW if kind.dim % 2 else COLUMN
    return roles


def _stand_in(block: nn.Module) -> None:
    """Replace modules that cannot run on the meta device by stand-ins with the same shapes."""
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (FlexAttention, VarlenAttention, ScaledDotProductAttention)):
                setattr(parent, name, InnerAttention())
            elif isinstance(child, nn.RMSNorm):
                setattr(parent, name, FusedRMSNorm(child))
            elif isinstance(child, MoE):
                setattr(parent, name, EvenExperts(child))
