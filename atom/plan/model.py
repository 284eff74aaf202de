"""Describe a model for plans: its parameters, and the activations its blocks keep for backward.

Nothing here names an architecture: :func:`atom.titan.planning.describe.describe` reads the
description from the model that a run would build. Activations are in bytes per token of one
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod

NONE, SELECTIVE, FULL = "none", "selective", "full"
MODES = (NONE, SELECTIVE, FULL)
"""Supported modes of activation checkpointing, from the most memory to the least."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: ``name`` and unsharded ``shape``.

    ``part`` is its pipeline unit (``tok_embeddings``, ``layers.3``, …). ``tensor_dim`` is the
    dimension that tensor parallelism shards, None if it is replicated; ``expert`` means that
    dimension 0 counts experts, which expert parallelism shards. ``uses`` counts the modules that
    share it: FSDP gathers and reduces a tied weight once for each. A parameter that is not
    ``trained`` has no gradient and no state.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    tensor_dim: int | None = None
    expert: bool = False
    uses: int = 1
    trained: bool = True

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes per token, by the kind of parallelism that divides them.

    Attributes:
        residual: the residual stream; divided by TP only under sequence parallelism.
        tensor: split heads and split hidden widths; divided by TP.
        gathered: inputs of column-parallel and outputs of row-parallel layers, which are whole on
            every TP rank (torchtitan keeps the gathered tensor, Megatron gathers it again).
        scattered: the output of a row-parallel layer's reduce-scatter, kept only under TP with
            sequence parallelism; divided by TP.
    """

    residual: float = 0.0
    tensor: float = 0.0
    gathered: float = 0.0
    scattered: float = 0.0

    def __add__(self, other: Activations) -> Activations:
        return Activations(
            self.residual + other.residual,
            self.tensor + other.tensor,
            self.gathered + other.gathered,
            self.scattered + other.scattered,
        )

    @property
    def whole(self) -> float:
        """Return the bytes per token on a single rank."""
        return self.residual + self.tensor + self.gathered


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block.

    Attributes:
        saved: activation checkpointing mode -> activations kept from forward to backward.
        working: mode -> activations live at the peak of the block's backward pass, with ``saved``.
        flops: FLOPs of a token's forward pass, matrix multiplications only.
        attention_width: query heads x head width, for the FLOPs of attention.
        keys_width: elements of a token's keys and values, which context parallelism sends.
    """

    saved: dict[str, Activations] = field(hash=False)
    working: dict[str, Activations] = field(hash=False)
    flops: float
    attention_width: float
    keys_width: int


@dataclass(frozen=True, slots=True)
class Count:
    """Elements of parameters on one rank, and the number of parameters they belong to."""

    numel: int = 0
    parameters: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.numel + other.numel, self.parameters + other.parameters)


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one part on one rank.

    ``local`` counts elements of its shards, ``gathered`` those while FSDP holds it gathered;
    ``trained`` counts those of ``local`` that are trained, and their parameters. ``gradients``
    counts elements of gradient shards, ``reduced`` those before they are reduced. ``matrices`` is
    the part of ``trained`` in two-dimensional parameters, if the part is a layer.
    """

    local: int
    gathered: int
    trained: Count
    gradients: int
    reduced: int
    matrices: Count


@dataclass(frozen=True)
class ModelDescription:
    """A model.

    Attributes:
        parameters: all parameters; a tied one once.
        blocks: part -> its block, in the order of the layers.
        width: elements of the residual stream.
        vocab_size: rows of the output layer.
        groups: parts that FSDP gathers together -> whether they stay gathered after forward. Each
            block is a group.
        activation_bytes: bytes of an activation's element.
        routed: block part -> bytes that expert parallelism sends per token, one way.
        outputs: how often the output layer is computed for a token of training.
    """

    parameters: tuple[Parameter, ...]
    blocks: dict[str, Block] = field(hash=False)
    width: int
    vocab_size: int
    groups: dict[tuple[str, ...], bool] = field(hash=False)
    activation_bytes: int = 2
    routed: dict[str, float] = field(default_factory=dict, hash=False)
    outputs: int = 1
    sizes: dict[tuple[int, ...], dict[str, Size]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Degrees -> the size of each part under them; a cache of :mod:`atom.plan.memory`."""

    @cached_property
    def numel(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel for parameter in self.parameters)

    @cached_property
    def head(self) -> tuple[str, ...]:
        """Return the parts after the last block: the final norm and the output layer."""
        names = [p.part for p in self.parameters]
        order = list(dict.fromkeys(names))
        last = max(order.index(part) for part in self.blocks)
        return tuple(order[last + 1 :])
