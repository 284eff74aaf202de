"""Describe a model's operations for the choice of kernels, and apply kernels to torchtitan."""

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

from atom.io import references, repair
from atom.kernels.choose import Choice, Preferences, Situation
from atom.kernels.choose import choose as choose_for
from atom.kernels.operations import OPERATIONS
from atom.plan.device import DeviceDescription
from atom.plugin import Declaration, Kernel, Objective, Optimizer
from atom.recipe.run import Run
from atom.registry.host import Component, Host, resolve
from atom.titan import windows

LINEAR_CROSS_ENTROPY = "linear_cross_entropy"
_AT_ONCE = frozenset({"moe_dispatch", "optimizer_step"})
"""Operations with overrides applied at config time, before torchtitan's trainer exists.

torchtitan fills in the run's sizes for ``moe_dispatch`` before it applies overrides; errors in
``optimizer_step`` are reported before ranks start. Kernels with ``before_sharding`` follow, too.
"""

_OF_TRAINING = frozenset({"cross_entropy", LINEAR_CROSS_ENTROPY, "gradient_clipping"})
_OF_TOKENS = frozenset({"cross_entropy", LINEAR_CROSS_ENTROPY})
"""Operations that are the loss, unless the objective has its own."""
_OF_OPTIMIZERS = frozenset({"newton_schulz", "optimizer_step"})


Coverage = dict[str, tuple[int, int]]
"""Operation -> number of its nodes that a kernel replaced, and number of its nodes."""

Chosen = tuple[Choice, ...]
Placed = TypeVar("Placed")


class UnfitError(Exception):
    """A kernel with all needs met does not compute the operation that it would replace."""

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
    optimizer: Optimizer | None = None,
    vocab_size: int | None = None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    supposed: Mapping[str, str | None] | None = None,
    unfit: Mapping[tuple[str, str], str] | None = None,
) -> Situation:
    """Return the situation that the kernels of ``model``, a torchtitan config, are chosen for.

    Args:
        model: the model's config.
        host: the plugins.
        device: the device of the run.
        run: None if there is no training.
        training: its section.
        optimizer: the declaration of its optimizer.
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
        operations=operations(
            model, offered, optimizer=optimizer, own_loss=run is not None and _own_loss(run, host)
        ),
        supposed=supposed or {},
        unfit=(_without_z_loss(host) if run is not None and run.loss.z_loss else {})
        | (_of_one_output(host) if getattr(model, "outputs", 1) > 1 else {})
        | dict(unfit or {}),
    )


def _without_z_loss(host: Host) -> dict[tuple[str, str], str]:
    """Return the reason against each kernel of the loss, if the run's loss has z-loss."""
    return {
        (each.declaration.operation, each.declaration.name): "computes no z-loss (loss.z_loss)"
        for each in host.components
        if isinstance(each.declaration, Kernel)
        and each.declaration.operation in ("cross_entropy", LINEAR_CROSS_ENTROPY)
        and each.declaration.override is not None
    }


def _of_one_output(host: Host) -> dict[tuple[str, str], str]:
    """Return the reason against each kernel of output layer and loss, for several outputs."""
    return {
        (
            LINEAR_CROSS_ENTROPY,
            each.declaration.name,
        ): "computes one output, and the model predicts several tokens (architecture.mtp_depth)"
        for each in host.components
        if isinstance(each.declaration, Kernel)
        and each.declaration.operation == LINEAR_CROSS_ENTROPY
        and each.declaration.override is not None
    }


def choose(
    preferences: Preferences, host: Host, where: Situation, *, loss_chunks: int = 1
) -> tuple[Choice, ...]:
    """Return the choices for the operations that a run executes.

    Args:
        preferences: the run's ``kernels``.
        host: the plugins.
        where: see :func:`situation`.
        loss_chunks: chunks that logits and loss are computed in; 1 for a loss from whole logits.

    Raises:
        UserError: no kernel fits.
    """
    return used(choose_for(preferences, host, where), loss_chunks=loss_chunks)


def operations(
    model: Any,
    offered: Iterable[str],
    *,
    optimizer: Optimizer | None = None,
    own_loss: bool = False,
) -> frozenset[str]:
    """Return the operations among ``offered`` that ``model`` contains.

    Both losses are included for a training run, which executes one of them. Operations that ATOM
    does not know are included, too.

    Args:
        model: a torchtitan model config.
        offered: operations that have kernels.
        optimizer: the declaration of the run's optimizer; None if there is no training.
        own_loss: true if the objective has a loss of its own.
    """

    def present(name: str) -> bool:
        if own_loss and name in _OF_TOKENS:
            return False
        if name in _OF_OPTIMIZERS:
            return optimizer is not None and name in optimizer.operations
        if name in _OF_TRAINING:
            return optimizer is not None
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
        tensor_parallel: ranks that shard the width of a feed-forward.
        expert_parallel: ranks that shard the experts; their widths then stay whole.
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
    # A model's blocks may have other mixers.
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
    """Return the choices without operations that the run never executes.

    Args:
        choices: of all operations.
        loss_chunks: chunks that logits and loss are computed in; 1 for a loss from whole logits.
    """
    choices = tuple(choices)
    fused = replaces_loss(choice.declaration for choice in choices)
    unused = {"cross_entropy"} if fused else set() if loss_chunks > 1 else {LINEAR_CROSS_ENTROPY}
    return tuple(choice for choice in choices if choice.operation not in unused)


def replaces_loss(declarations: Iterable[Declaration]) -> bool:
    """Return whether a kernel fuses the output layer and the loss."""
    return any(
        isinstance(kernel, Kernel)
        and kernel.operation == LINEAR_CROSS_ENTROPY
        and kernel.override is not None
        for kernel in declarations
    )


def replace(config: Any, declarations: Iterable[Declaration]) -> Coverage:
    """Replace nodes in a torchtitan config, a run's or a model's, by kernels.

    Returns:
        The coverage of each kernel.

    Raises:
        UnfitError: a kernel replaces nothing, or an operation that it does not compute.
    """
    return apply(config, _targets(_kernels(declarations)))


def apply(config: Any, targets: Mapping[str, str]) -> Coverage:
    """Apply overrides; return how many nodes of each operation they replaced, and of how many.

    Args:
        config: a torchtitan config.
        targets: override, in torchtitan's notation -> operation.

    Raises:
        UnfitError: an override replaces nothing, or a node of a class that computes something else.
    """
    for target in targets:  # the import registers it
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
    """Choose and place kernels, repeatedly, until every chosen one computes its operation.

    Args:
        choose: returns choices, given reasons against kernels.
        place: raises :class:`UnfitError` for one of them.
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
    """Apply the kernels of a run to ``config``, a ``Trainer.Config`` of ATOM's.

    torchtitan's trainer replaces most nodes after it has set the model's sharding.

    Raises:
        UserError: a plugin's function does not exist, or a kernel refuses the run.
        UnfitError: a kernel does not compute its operation in this run.
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
    """Replace functions by others within the context.

    Args:
        functions: ``module:function`` -> its replacement.
    """
    with ExitStack() as stack:
        for place, function in functions.items():
            stack.enter_context(repair.replaced(place, references.resolve(function)))
        yield


def _kernels(declarations: Iterable[Declaration]) -> list[Kernel]:
    return [each for each in declarations if isinstance(each, Kernel)]


def _function(kernel: Kernel) -> str | None:
    """Return the function that a kernel replaces; None if it replaces a node."""
    known = OPERATIONS.get(kernel.operation)
    return known.function if known else None


def _targets(kernels: Iterable[Kernel]) -> dict[str, str]:
    """Return the overrides of nodes, in torchtitan's notation, each with its operation."""
    return {
        kernel.override.replace(":", "."): kernel.operation
        for kernel in kernels
        if kernel.override is not None and _function(kernel) is None
    }


def _node_of(operation: str) -> Any:
    """Return the config class of the operation's node; None if it has no node."""
    known = OPERATIONS.get(operation)
    return (
        references.resolve(known.node).Config
        if known is not None and known.node is not None
        else None
    )


def _problem(
    operation: str, aim: type, nodes: list[Any], replaced: list[tuple[Any, Any]]
) -> str | None:
    """Return why an override does not compute the same as its operation's nodes, or None.

    A class derived from the operation's node may compute more than the node. Its replacement must
    be meant for that class, or derive from it.
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


def _own_loss(run: Run, host: Host) -> bool:
    """Return whether the run's objective has a loss of its own."""
    named = (section.name for kind, _, section in run.components() if kind is Objective)
    found = (host.find(Objective.kind, name).declaration for name in named)
    return any(isinstance(each, Objective) and each.loss is not None for each in found)


def _has_sinks(attention: Any) -> bool:
    module = sys.modules.get("torchtitan.models.gpt_oss.model")  # imported if a config of it exists
    return module is not None and isinstance(attention, module.Attention.Config)


def _has(model: Any, node: str) -> bool:
    return any(True for _ in _nodes(model, references.resolve(node).Config))


def _nodes(model: Any, config: type) -> Iterator[Any]:
    return (node for _, node, _, _ in model.traverse(config, recurse=True))
