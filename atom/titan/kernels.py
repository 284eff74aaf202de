"""What kernels are chosen for, read off a model's config; and how torchtitan is told of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torchtitan.config import TrainingConfig
from torchtitan.config.override import _REGISTRY, OverrideConfig, apply_overrides
from torchtitan.models.common.attention import GQAttention
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.moe import GroupedExperts

from atom.io.repair import replaced
from atom.kernels.choose import Choice, Preferences, Situation
from atom.kernels.choose import choose as choose_for
from atom.kernels.operations import OPERATIONS
from atom.plan.device import DeviceDescription
from atom.plugin import Declaration, Kernel
from atom.recipe.run import Run
from atom.registry.host import Component, Host, resolve
from atom.titan import windows
from atom.titan.optim.muon import MUON

LINEAR_CROSS_ENTROPY = "linear_cross_entropy"
NEWTON_SCHULZ = "newton_schulz"
_AT_ONCE = frozenset({"moe_dispatch", "optimizer_step"})
"""Operations whose nodes are replaced as soon as there is a config: torchtitan fills in the first
one's with the run's sizes before it applies overrides, and what is wrong with the second is told
before there are ranks. So are those of a kernel that says so itself."""

_OF_TRAINING = frozenset(
    {"cross_entropy", LINEAR_CROSS_ENTROPY, "optimizer_step", "gradient_clipping"}
)


Coverage = dict[str, tuple[int, int]]
"""Operation -> how many of its nodes a kernel replaced, and how many there are."""

Chosen = tuple[Choice, ...]
Placed = TypeVar("Placed")


class UnfitError(Exception):
    """A kernel that fits by what it needs does not compute what the run has in its place."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"{operation}: {reason}")
        self.operation = operation
        self.reason = reason


def situation(
    model: Any,
    host: Host,
    device: DeviceDescription,
    *,
    run: Run | None = None,
    training: TrainingConfig | None = None,
    vocab_size: int | None = None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    supposed: Mapping[str, str | None] | None = None,
    unfit: Mapping[tuple[str, str], str] | None = None,
) -> Situation:
    """Return what the kernels of ``model``, a torchtitan config, are chosen for.

    Args:
        model: what computes.
        host: the plugins.
        device: where.
        run: None if nothing is trained.
        training: its section.
        unfit: see :class:`atom.kernels.choose.Situation`.
    """
    offered = [
        c.declaration.operation for c in host.components if isinstance(c.declaration, Kernel)
    ]
    return Situation(
        device=device,
        dtype=training.mixed_precision_param if training else None,
        parameter_dtype=training.dtype if training else None,
        sizes=sizes(
            model,
            vocab_size=vocab_size,
            tensor_parallel=tensor_parallel,
            expert_parallel=expert_parallel,
        ),
        tensor_parallel=tensor_parallel,
        context_parallel=context_parallel,
        expert_parallel=expert_parallel,
        deterministic=run is not None and run.debug.deterministic,
        operations=operations(model, offered, optimizer=run.optimizer.name if run else None),
        supposed=supposed or {},
        unfit=unfit or {},
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


def operations(
    model: Any, offered: Iterable[str], *, optimizer: str | None = None
) -> frozenset[str]:
    """Return which of the operations ``offered`` there are where ``model`` computes.

    Both losses are among those of a training run: it has one of the two. So is what ATOM does not
    know.

    Args:
        model: a torchtitan model config.
        offered: operations that there are kernels for.
        optimizer: the run's ``optimizer.name``; None if nothing is trained.
    """

    def present(name: str) -> bool:
        if name in _OF_TRAINING:
            return optimizer is not None
        if name == NEWTON_SCHULZ:
            return optimizer == MUON
        node = OPERATIONS[name].node if name in OPERATIONS else None
        return node is None or _has(model, node)

    return frozenset(filter(present, offered))


def sizes(
    model: Any, *, vocab_size: int | None, tensor_parallel: int = 1, expert_parallel: int = 1
) -> dict[str, Any]:
    """Return the values of each size that the model's kernels see on one rank.

    Args:
        model: a torchtitan model config.
        vocab_size: None if it is not known yet.
        tensor_parallel: ranks that share the width of a feed-forward.
        expert_parallel: ranks that share the experts, whose widths are whole then.
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
    # A model may have another mixer in its blocks.
    attentions: list[Any] = [
        getattr(layer, "attention", None) for layer in getattr(model, "layers", ())
    ]
    windows_of = set(windows.of_layers(model).values())
    if any(windows_of):
        found["window"] = windows_of
        found["masked_window"] = set(windows.in_masks_alone(model)) or {0}
    if any(map(_has_sinks, attentions)):
        found["sinks"] = {each.n_heads for each in attentions if _has_sinks(each)}
    for name, widths, ranks in (
        ("hidden_dim", {n.w1.out_features for n in _nodes(model, FeedForward.Config)}, 1),
        (
            "grouped_mm.hidden_dim",
            {n.hidden_dim for n in _nodes(model, GroupedExperts.Config)},
            expert_parallel,
        ),
    ):
        if widths:
            found[name] = {width if ranks > 1 else width // tensor_parallel for width in widths}
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


def replace(config: Any, declarations: Iterable[Declaration]) -> Coverage:
    """Put the kernels that replace a node into a config of torchtitan's, a run's or a model's.

    Returns:
        What each of them replaced.

    Raises:
        UnfitError: a kernel replaces nothing, or what it would not compute.
    """
    return apply(config, _targets(_kernels(declarations)))


def apply(config: Any, targets: Mapping[str, str]) -> Coverage:
    """Apply overrides; return how many nodes of each operation they replaced, and of how many.

    Args:
        config: a config of torchtitan's.
        targets: override, as torchtitan names it -> operation.

    Raises:
        UnfitError: an override replaces nothing, or a node of a class that computes something else.
    """
    for target in targets:  # registers it
        importlib.import_module(target.rpartition(".")[0])
    aims = {target: _REGISTRY[target].target_cls for target in targets if target in _REGISTRY}
    places = {
        target: list(config.traverse(_node_of(operation) or aims[target], recurse=True))
        for target, operation in targets.items()
        if target in aims
    }
    apply_overrides(OverrideConfig(imports=list(targets)), config)
    found: Coverage = {}
    for target, nodes in places.items():
        replaced = [
            (old, new)
            for _, old, parent, name in nodes
            if (new := parent[name] if isinstance(parent, list) else getattr(parent, name))
            is not old
        ]
        operation = targets[target]
        if problem := _problem(operation, aims[target], [old for _, old, _, _ in nodes], replaced):
            raise UnfitError(operation, problem)
        found[operation] = (len(replaced), len(nodes))
    return found


def settle(
    choose: Callable[[Mapping[tuple[str, str], str]], Chosen],
    place: Callable[[Chosen], Placed],
) -> tuple[Chosen, Placed]:
    """Choose kernels and place them, until all that are chosen compute what they are chosen for.

    Args:
        choose: returns choices, given reasons against kernels.
        place: raises :class:`UnfitError` of one of them.
    """
    unfit: dict[tuple[str, str], str] = {}
    while True:
        chosen = choose(unfit)
        try:
            return chosen, place(chosen)
        except UnfitError as error:
            (name,) = (each.name for each in chosen if each.operation == error.operation)
            unfit[error.operation, name] = error.reason


def put(config: Any, components: Iterable[Component]) -> None:
    """Put the kernels of a run into ``config``, a ``Trainer.Config`` of ATOM's.

    Most nodes are replaced by torchtitan's trainer, when it has given the model its sharding.

    Raises:
        UserError: a function of a plugin is not there, or a kernel refuses the run.
        UnfitError: a kernel does not compute what it is chosen for.
    """
    components = tuple(components)
    kernels = _kernels(component.declaration for component in components)
    at_once = [k for k in kernels if k.operation in _AT_ONCE or k.before_sharding]
    config.replaced = replace(config, at_once)
    config.overrides = _targets(k for k in kernels if k not in at_once)
    config.override = OverrideConfig(imports=list(config.overrides))
    config.functions = {}
    for component, kernel in zip(components, kernels, strict=True):
        place = _function(kernel)
        if place is not None and kernel.override is not None:
            resolve(kernel.override, component)
            config.functions[place] = kernel.override


@contextmanager
def called(functions: Mapping[str, str]) -> Iterator[None]:
    """Have functions called in the place of others.

    Args:
        functions: ``module:function`` -> the one that takes its place.
    """
    with ExitStack() as stack:
        for place, function in functions.items():
            stack.enter_context(replaced(place, _imported(function)))
        yield


def _kernels(declarations: Iterable[Declaration]) -> list[Kernel]:
    return [each for each in declarations if isinstance(each, Kernel)]


def _function(kernel: Kernel) -> str | None:
    """Return which function a kernel takes the place of; None if it is a node."""
    known = OPERATIONS.get(kernel.operation)
    return known.function if known else None


def _targets(kernels: Iterable[Kernel]) -> dict[str, str]:
    """Return the overrides of nodes, as torchtitan names them, each with its operation."""
    return {
        kernel.override.replace(":", "."): kernel.operation
        for kernel in kernels
        if kernel.override is not None and _function(kernel) is None
    }


def _node_of(operation: str) -> Any:
    """Return the config class of the operation's node; None of an operation that has none."""
    known = OPERATIONS.get(operation)
    return _imported(known.node).Config if known is not None and known.node is not None else None


def _problem(
    operation: str, aim: type, nodes: list[Any], replaced: list[tuple[Any, Any]]
) -> str | None:
    """Return why an override does not compute what its operation's nodes do, or None.

    A class that is derived from the operation's node may compute more than the node does. Whatever
    takes its place must be meant for it, or be derived from it.
    """
    plain = _node_of(operation) or aim
    if not replaced:
        kinds = ", ".join(
            sorted({type(node).__qualname__.removesuffix(".Config") for node in nodes})
        )
        return f"replaces none of the run's {len(nodes)} nodes of {operation} ({kinds})"
    for old, new in replaced:
        if type(old) not in (plain, aim) and not isinstance(new, type(old)):
            kind, name = type(old).__qualname__.removesuffix(".Config"), plain.__qualname__
            return f"would replace {kind}, which computes more than {name.removesuffix('.Config')}"
    return None


def _has_sinks(attention: Any) -> bool:
    module = sys.modules.get("torchtitan.models.gpt_oss.model")  # no config of it without it
    return module is not None and isinstance(attention, module.Attention.Config)


def _has(model: Any, node: str) -> bool:
    return any(True for _ in _nodes(model, _imported(node).Config))


def _nodes(model: Any, config: type) -> Iterator[Any]:
    return (node for _, node, _, _ in model.traverse(config, recurse=True))


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
