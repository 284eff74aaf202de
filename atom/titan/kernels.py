"""What kernels are chosen for, read off a model's config; and how torchtitan is told of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchtitan.config.override import OverrideConfig, apply_overrides
from torchtitan.models.common.attention import GQAttention
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import GroupedExperts

from atom.host import Host
from atom.kernels import Choice, Preferences, Situation
from atom.kernels import choose as choose_for
from atom.operations import OPERATIONS
from atom.plan.device import DeviceDescription
from atom.plugin import Declaration, Kernel

LINEAR_CROSS_ENTROPY = "linear_cross_entropy"
_FILLED_IN = frozenset({"moe_dispatch"})
"""Operations whose nodes torchtitan fills in with the run's sizes, before it applies overrides."""

_LOSSES = frozenset({"cross_entropy", LINEAR_CROSS_ENTROPY})


def situation(
    model: Any,
    host: Host,
    device: DeviceDescription,
    *,
    dtype: str | None = None,
    vocab_size: int | None = None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    supposed: Mapping[str, str | None] | None = None,
) -> Situation:
    """Return what the kernels of a run of ``model``, a torchtitan config, are chosen for."""
    offered = [
        c.declaration.operation for c in host.components if isinstance(c.declaration, Kernel)
    ]
    return Situation(
        device=device,
        dtype=dtype,
        sizes=sizes(model, vocab_size=vocab_size, tensor_parallel=tensor_parallel),
        tensor_parallel=tensor_parallel,
        context_parallel=context_parallel,
        expert_parallel=expert_parallel,
        operations=operations(model, offered),
        supposed=supposed or {},
    )


def choose(
    preferences: Preferences, host: Host, where: Situation, *, loss_chunks: int = 1
) -> tuple[Choice, ...]:
    """Return the choices for the operations that a run comes to.

    Args:
        preferences: the run's ``kernels``.
        host: the plugins.
        where: see :func:`situation`.
        loss_chunks: pieces that logits and loss are computed in; 1 for a loss from whole logits.

    Raises:
        UserError: no kernel fits.
    """
    return used(choose_for(preferences, host, where), loss_chunks=loss_chunks)


def operations(model: Any, offered: Iterable[str]) -> frozenset[str]:
    """Return which of the operations ``offered`` a run of ``model`` has.

    The losses are among them: every run has one of the two. So is what ATOM does not know.

    Args:
        model: a torchtitan model config.
        offered: operations that there are kernels for.
    """
    return frozenset(
        name
        for name in offered
        if name in _LOSSES or name not in OPERATIONS or _has(model, OPERATIONS[name].node)
    )


def sizes(model: Any, *, vocab_size: int | None, tensor_parallel: int = 1) -> dict[str, Any]:
    """Return the values of each size that the model's kernels see on one rank.

    Args:
        model: a torchtitan model config.
        vocab_size: None if it is not known yet.
        tensor_parallel: ranks that share the width of a feed-forward.
    """
    found: dict[str, set[int]] = {"dim": {model.dim}}
    for attention in _nodes(model, GQAttention.Config):
        found.setdefault("head_dim", set()).add(
            attention.head_dim or attention.dim // attention.n_heads
        )
    for layer in getattr(model, "layers", ()):  # latent attention has two widths
        latent: Any = getattr(layer, "attention", None)
        if hasattr(latent, "qk_nope_head_dim"):
            widths = {latent.qk_nope_head_dim + latent.qk_rope_head_dim, latent.v_head_dim}
            found["head_dim"] = found.get("head_dim", set()) | widths
    hidden = {node.w1.out_features for node in _nodes(model, FeedForward.Config)}
    hidden |= {node.hidden_dim for node in _nodes(model, GroupedExperts.Config)}
    if hidden:
        found["hidden_dim"] = {-(-width // tensor_parallel) for width in hidden}
    if vocab_size is not None:
        found["vocab_size"] = {vocab_size}
    return {name: tuple(sorted(values)) for name, values in found.items()}


def used(choices: Iterable[Choice], *, loss_chunks: int) -> tuple[Choice, ...]:
    """Return the choices less those of operations that the run does not come to.

    Args:
        choices: of all operations.
        loss_chunks: pieces that logits and loss are computed in; 1 for a loss from whole logits.
    """
    choices = tuple(choices)
    fused = replaces_loss(choice.declaration for choice in choices)
    unused = {"cross_entropy"} if fused else set() if loss_chunks > 1 else {LINEAR_CROSS_ENTROPY}
    return tuple(choice for choice in choices if choice.operation not in unused)


def replaces_loss(declarations: Iterable[Declaration]) -> bool:
    """Return whether one of the kernels computes the output layer and the loss as one."""
    return any(
        isinstance(kernel, Kernel)
        and kernel.operation == LINEAR_CROSS_ENTROPY
        and kernel.override is not None
        for kernel in declarations
    )


def replace(config: Any, declarations: Iterable[Declaration]) -> None:
    """Put the kernels that replace a node into a config of torchtitan's, a run's or a model's."""
    apply_overrides(OverrideConfig(imports=_targets(declarations)), config)


def overrides(model: Any, declarations: Iterable[Declaration]) -> OverrideConfig:
    """Return what torchtitan's trainer is to replace, when it has given ``model`` the sharding.

    What it fills in with the run's sizes as it does so is in ``model`` afterwards.
    """
    kernels = [each for each in declarations if isinstance(each, Kernel)]
    replace(model, (kernel for kernel in kernels if kernel.operation in _FILLED_IN))
    others = (kernel for kernel in kernels if kernel.operation not in _FILLED_IN)
    return OverrideConfig(imports=_targets(others))


def _targets(declarations: Iterable[Declaration]) -> list[Any]:
    return [
        declaration.override.replace(":", ".")
        for declaration in declarations
        if isinstance(declaration, Kernel) and declaration.override is not None
    ]


def _has(model: Any, node: str) -> bool:
    module, _, name = node.partition(":")
    owner = getattr(importlib.import_module(module), name)
    return any(True for _ in _nodes(model, owner.Config))


def _nodes(model: Any, config: type) -> Iterator[Any]:
    return (node for _, node, _, _ in model.traverse(config, recurse=True))
