"""A model as plans see it: its parameters, and what its blocks keep for the backward pass.

Nothing here names an architecture: :func:`atom.titan.planning.describe.describe` reads it off the
model that a run would build. Units are bytes; activations are a token's, of one sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

NONE, SELECTIVE, FULL = "none", "selective", "full"
MODES = (NONE, SELECTIVE, FULL)
"""Activation checkpointing that a description covers, from the most memory to the least."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: ``name`` and whole ``shape``.

    ``part`` is the pipeline's unit that it belongs to (``tok_embeddings``, ``layers.3``, …).
    ``tensor_dim`` is the dimension that tensor parallelism splits, None where it is replicated;
    ``expert`` says that dimension 0 counts experts, which expert parallelism deals out. ``uses``
    counts the modules that share it: FSDP gathers and reduces a tied weight once for each.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    tensor_dim: int | None = None
    expert: bool = False
    uses: int = 1

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes a token, by what divides them.

    Attributes:
        residual: of the residual stream; divided by TP only under sequence parallelism.
        tensor: of split heads and split hidden widths; divided by TP.
        gathered: inputs of column-parallel and outputs of row-parallel layers, which are whole on
            every rank of TP (torchtitan keeps the gathered tensor, Megatron gathers it again).
        scattered: what a row-parallel layer's reduce-scatter leaves, kept only under TP with
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
        """Return the bytes a token on a single rank."""
        return self.residual + self.tensor + self.gathered


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block.

    Attributes:
        saved: activation checkpointing mode -> what stays from forward to backward.
        working: mode -> what is live at the peak of the block's backward pass, ``saved`` included.
        flops: of a token's forward pass, matrix multiplications only.
        attention_width: query heads x head width, for the attention's own FLOPs.
        keys_width: elements of a token's keys and values, which context parallelism moves.
    """

    saved: dict[str, Activations] = field(hash=False)
    working: dict[str, Activations] = field(hash=False)
    flops: float
    attention_width: float
    keys_width: int


@dataclass(frozen=True, slots=True)
class Count:
    """Elements of parameters on one rank, and in how many parameters they are."""

    numel: int = 0
    parameters: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.numel + other.numel, self.parameters + other.parameters)


@dataclass(frozen=True, slots=True)
class Size:
    """A part on one rank: ``local`` elements in its shards, ``gathered`` ones while FSDP holds it
    gathered, in ``parameters`` parameters; ``gradients`` elements in shards of gradients.
    ``matrices`` are its local ones of two dimensions, if it is a layer."""

    local: int
    gathered: int
    parameters: int
    gradients: int
    matrices: Count


@dataclass(frozen=True)
class ModelDescription:
    """A model.

    Attributes:
        parameters: all of them; a tied one once.
        blocks: part -> its block, in the order of the layers.
        width: of the residual stream, in elements.
        vocab_size: rows of the output layer.
        groups: parts that FSDP gathers together -> whether they stay gathered after forward. A
            block is a group of its own.
        activation_bytes: bytes of an activation's element.
        routed: block part -> tokens' bytes that expert parallelism sends for one token, one way.
    """

    parameters: tuple[Parameter, ...]
    blocks: dict[str, Block] = field(hash=False)
    width: int
    vocab_size: int
    groups: dict[tuple[str, ...], bool] = field(hash=False)
    activation_bytes: int = 2
    routed: dict[str, float] = field(default_factory=dict, hash=False)
    sizes: dict[tuple[int, ...], dict[str, Size]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Degrees -> the size of each part under them: filled by :mod:`atom.plan.memory`."""

    @property
    def numel(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel for parameter in self.parameters)

    @property
    def head(self) -> tuple[str, ...]:
        """Return the parts behind the last block: the final norm and the output layer."""
        names = [p.part for p in self.parameters]
        order = list(dict.fromkeys(names))
        last = max(order.index(part) for part in self.blocks)
        return tuple(order[last + 1 :])
