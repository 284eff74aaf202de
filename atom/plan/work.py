"""Describe the work of a model's blocks: matrix products, attention, memory-bound operations.

:func:`work` reads it from a :class:`~atom.plan.model.ModelDescription`, so from the shapes of the
real model's parameters; :mod:`atom.plan.transformer` writes it from a model's published widths.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.plan.model import Block, ModelDescription, Parameter

COLUMN, ROW, WHOLE = "column", "row", "whole"
"""How tensor parallelism splits a weight: its outputs, its inputs, not at all."""


@dataclass(frozen=True, slots=True)
class Product:
    """The product of tokens with a weight of ``outputs`` x ``inputs``.

    ``experts`` counts the weights of this shape that tokens are routed to, ``top_k`` the experts of
    a token.
    """

    inputs: int
    outputs: int
    split: str = WHOLE
    experts: int = 0
    top_k: int = 1

    @property
    def numel(self) -> int:
        return self.inputs * self.outputs * max(self.experts, 1)


@dataclass(frozen=True, slots=True)
class BlockWork:
    """The work of one block.

    Attributes:
        products: matrix products of a forward pass.
        attention_width: query heads x mean width of queries and values.
        keys_width: elements of a token's keys and values.
        head_width: elements of one head.
        window: tokens that attention sees; 0 for all before.
    """

    products: tuple[Product, ...]
    attention_width: float
    keys_width: float
    head_width: int = 128
    window: int = 0

    @property
    def dense(self) -> int:
        """Return the elements of weights that are not experts'."""
        return sum(product.numel for product in self.products if not product.experts)

    @property
    def expert(self) -> int:
        """Return the elements of all experts' weights."""
        return sum(product.numel for product in self.products if product.experts)

    @property
    def top_k(self) -> int:
        return max((product.top_k for product in self.products if product.experts), default=0)

    @property
    def hidden(self) -> float:
        """Return the elements of a token that activation functions read and write."""
        total = 0.0
        for product in self.products:
            if product.split == COLUMN:
                total += product.outputs * product.top_k
            elif product.split == ROW:
                total += product.inputs * product.top_k
        return max(total - 2 * self.attention_width - self.keys_width, 0.0)


@dataclass(frozen=True)
class ModelWork:
    """The work of a model: its blocks by part, and the output layer, computed ``outputs`` times."""

    blocks: dict[str, BlockWork] = field(hash=False)
    width: int
    vocab_size: int
    tied: bool = False
    outputs: int = 1


def work(model: ModelDescription) -> ModelWork:
    """Return the work of ``model``."""
    weights: dict[str, list[Parameter]] = {}
    for parameter in model.parameters:
        if parameter.part in model.blocks and len(parameter.shape) > 1:
            weights.setdefault(parameter.part, []).append(parameter)
    known: dict[tuple[object, ...], BlockWork] = {}
    blocks = {}
    for part, block in model.blocks.items():
        shapes = tuple((p.shape, p.tensor_dim, p.expert) for p in weights.get(part, ()))
        top_k = round(model.routed.get(part, 0.0) / (model.width * model.activation_bytes))
        key = (shapes, top_k, block.attention_width, block.keys_width)
        if key not in known:
            known[key] = _block(block, weights.get(part, []), max(top_k, 1))
        blocks[part] = known[key]
    tied = any(p.uses > 1 and p.shape[0] == model.vocab_size for p in model.parameters if p.shape)
    return ModelWork(blocks, model.width, model.vocab_size, tied, model.outputs)


def _block(block: Block, weights: list[Parameter], top_k: int) -> BlockWork:
    products = []
    for weight in weights:
        *rest, outputs, inputs = weight.shape
        experts = rest[0] if weight.expert and rest else 0
        axis = None if weight.tensor_dim is None else weight.tensor_dim - len(rest)
        split = {0: COLUMN, 1: ROW}.get(axis, WHOLE) if axis is not None else WHOLE
        products.append(Product(inputs, outputs, split, experts, top_k if experts else 1))
    return BlockWork(tuple(products), block.attention_width, block.keys_width)
