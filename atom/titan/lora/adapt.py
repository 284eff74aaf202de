"""Give a model's config adapters, and freeze everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.models.common.attention import FusedQKVLinear, QKVLinear
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.module import Module

from atom.errors import UserError, nearest
from atom.plugin import ModelParts
from atom.recipe.lora import Lora, matches
from atom.titan.lora import layers
from atom.titan.lora.layers import FUSED

_PARTS = ("wq", "wk", "wv")
_SUFFIXES = tuple(f".{matrix}.weight" for matrix in (layers.A, layers.B))
_DIST_GEMM = "torchtitan.models.common.dist_gemm"
_LEFT_OUT = {"lm_head": "is the output layer", "gate": "is the router of experts"}


@dataclass(frozen=True)
class _Layer:
    """A linear layer that can be adapted.

    Attributes:
        name: as checkpoints name it; the parts of a fused layer are layers of their own.
        place: the node of the config, its parent and its name there.
    """

    name: str
    place: tuple[Any, Any, Any]
    part: str = ""


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return name.endswith(_SUFFIXES)


def updated(name: str) -> str:
    """Return the weight that an adapter's parameter updates, as checkpoints name it."""
    layer = name.rpartition(".")[0].rpartition(".")[0]
    return f"{layer.replace(f'.{FUSED}.', '.')}.weight"


def names(model: Any) -> frozenset[str]:
    """Return the names of the parameters of adapters in a model's config."""
    with torch.device("meta"):
        return frozenset(name for name, _ in model.build().named_parameters() if is_adapter(name))


def left_out(model: nn.Module, expected: frozenset[str]) -> tuple[str, str] | None:
    """Return the operation with a kernel that replaces adapters, or computes without them, and the
    reason; None without one.

    Args:
        model: as ranks build it.
        expected: the parameters of its adapters.
    """
    lost = sorted(expected.difference(name for name, _ in model.named_parameters()))
    # torchtitan's fused projections multiply by the weights of layers, and call no layer.
    around = (n for n, each in model.named_modules() if type(each).__module__ == _DIST_GEMM)
    lost += [name for prefix in around for name in expected if name.startswith(f"{prefix}.")]
    if not lost:
        return None
    layer = updated(lost[0]).removesuffix(".weight")
    operation = "attention_projections" if ".attention." in layer else "feed_forward"
    return operation, f"would leave out the adapter of {layer}"


def freeze(model: nn.Module) -> None:
    """Let only adapters be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(canonical_fqn(name)))


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that are trained, by name: adapters, or all if there are none."""
    named = [(canonical_fqn(name), value) for name, value in model.named_parameters()]
    adapters = [(name, value) for name, value in named if is_adapter(name)]
    yield from adapters or named


def adapt(parts: ModelParts, lora: Lora) -> ModelParts:
    """Return ``parts`` with the adapters of a run; the same parts if it has none.

    Raises:
        UserError: a pattern matches no linear layer.
    """
    if not lora.rank:
        return parts
    model = deepcopy(parts.model)
    found = list(_layers(model))
    chosen = _chosen(lora.targets, [layer.name for layer in found], model)
    fused: dict[int, tuple[Any, list[str]]] = {}
    for layer in found:
        if layer.name not in chosen:
            continue
        node, parent, name = layer.place
        if layer.part:
            fused.setdefault(id(parent), (parent, []))[1].append(layer.part)
        else:
            _put(parent, name, _config(node, layers.adapted(type(node)._owner), lora))
    for parent, names in fused.values():
        _put(parent, FUSED, _fused(parent, tuple(names), lora))
    # Routing biases belong to the base, which stays as it is.
    return replace(parts, model=model, post_optimizer_build_fn=None)


def _config(node: Any, adapted: Any, lora: Lora, **more: Any) -> Any:
    given = {field.name: getattr(node, field.name) for field in fields(node) if field.init}
    return adapted.Config(**given, rank=lora.rank, scale=lora.scale, **more)


def _fused(parent: Any, names: tuple[str, ...], lora: Lora) -> Any:
    node = getattr(parent, FUSED)
    heads = {"wq": parent.n_heads // parent.n_kv_heads, "wk": 1, "wv": 1}
    return _config(
        node,
        layers.adapted_fused(type(node)._owner),
        lora,
        heads=heads,
        groups=parent.n_kv_heads,
        width=parent.head_dim,
        parts=names,
    )


def _put(parent: Any, name: Any, node: Any) -> None:
    if isinstance(parent, list):
        parent[name] = node
    else:
        setattr(parent, name, node)


def _layers(model: Any) -> Iterator[_Layer]:
    """Yield the linear layers of a config that can be adapted, in its order."""
    for name, node, parent, attribute in model.traverse(Linear.Config, recurse=True):
        last = name.rpartition(".")[2]
        if last in _LEFT_OUT:
            continue
        place = (node, parent, attribute)
        if isinstance(parent, FusedQKVLinear.Config):
            above = name.rpartition(".")[0]
            yield from (_Layer(f"{above}.{part}", place, part) for part in _PARTS)
        elif isinstance(parent, QKVLinear.Config) and attribute == "wkv":
            # One config describes two layers.
            yield _Layer(name, place)
        else:
            yield _Layer(name, place)


def _chosen(targets: list[str], names: list[str], model: Any) -> set[str]:
    found: set[str] = set()
    for number, target in enumerate(targets):
        mine = {name for name in names if matches(target, name)}
        if not mine:
            raise _unmatched(number, target, names, model)
        found |= mine
    return found


def _unmatched(number: int, target: str, names: list[str], model: Any) -> UserError:
    others = [name for name, _, _, _ in model.traverse(Module.Config, recurse=True)]
    other = next((name for name in others if name and matches(target, name)), None)
    short = list(dict.fromkeys(_ends(names)))
    if other is None:
        words = "matches no linear layer"
    else:
        last = other.rpartition(".")[2]
        words = _LEFT_OUT.get(last, f"matches {other}, which is no linear layer")
        words += ", and adapters are of the other linear layers" if last in _LEFT_OUT else ""
    return UserError(
        f"{words}; {nearest(target, short)}",
        key=f"lora.targets.{number}",
        value=target,
    )


def _ends(names: Iterable[str]) -> Iterator[str]:
    return (name.rpartition(".")[2] for name in names)
