"""How much work an operation is: FLOPs, and what must be moved.

What is counted is the least: every input is read once and every output written once, nothing
between them is; a gradient reads the inputs and the output's gradient and writes the gradients of
all floating-point inputs. Additions, products, comparisons, exponentials and the like count as one
FLOP each.

Each function here returns the work as a function of the sizes, or is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atom.titan.contracts.sizes import Sizes


@dataclass(frozen=True)
class Work:
    """FLOPs, elements of the dtype that are moved at least, and other bytes that are."""

    flops: float
    elements: float
    other: float = 0.0

    def bytes(self, itemsize: int) -> float:
        return self.elements * itemsize + self.other


def of_norm(passes: int, flops: int, weights: int) -> Callable[[Sizes], Work]:
    def work(sizes: Sizes) -> Work:
        values = sizes.rows * sizes.dim
        return Work(flops * values, passes * values + weights * sizes.dim)

    return work


def of_rope(cache_columns: Callable[[Sizes], int]) -> Callable[[Sizes], Work]:
    """Three FLOPs an element; the cache, in float32, is read once for all sequences."""

    def work(sizes: Sizes) -> Work:
        values = sizes.rows * (sizes.n_heads + sizes.n_kv_heads) * sizes.head_dim
        return Work(3 * values, 2 * values, 4 * sizes.length * cache_columns(sizes))

    return work


def of_silu_mul(passes: int, flops: int) -> Callable[[Sizes], Work]:
    def work(sizes: Sizes) -> Work:
        values = sizes.rows * sizes.hidden_dim
        return Work(flops * values, passes * values)

    return work


def of_feed_forward(products: int, flops: int, passes: int, weights: int) -> Callable:
    """The values of width F between the products need not be moved."""

    def work(sizes: Sizes) -> Work:
        rows, dim, hidden = sizes.rows, sizes.dim, sizes.hidden_dim
        return Work(
            2 * products * rows * dim * hidden + flops * rows * hidden,
            passes * rows * dim + weights * dim * hidden,
        )

    return work


def of_linear(products: int, inputs: int, outputs: int, weights: int) -> Callable[[Sizes], Work]:
    def work(sizes: Sizes) -> Work:
        rows, dim, hidden = sizes.rows, sizes.dim, sizes.hidden_dim
        return Work(
            2 * products * rows * dim * hidden,
            inputs * rows * dim + outputs * rows * hidden + weights * dim * hidden,
        )

    return work


def of_embedding(sizes: Sizes) -> Work:
    rows = sizes.rows
    return Work(0, 2 * rows * sizes.dim, 8 * rows)


def of_embedding_backward(sizes: Sizes) -> Work:
    """The gradient of the table is dense."""
    rows = sizes.rows
    return Work(rows * sizes.dim, (rows + sizes.vocab_size) * sizes.dim, 8 * rows)


def of_cross_entropy(passes: int) -> Callable[[Sizes], Work]:
    """Four FLOPs a logit: the largest, the difference from it, its exponential, and their sum."""

    def work(sizes: Sizes) -> Work:
        rows = sizes.rows
        return Work(4 * rows * sizes.vocab_size, passes * rows * sizes.vocab_size, 8 * rows)

    return work


def of_linear_cross_entropy(products: int, copies: int) -> Callable[[Sizes], Work]:
    """The logits need not be moved."""

    def work(sizes: Sizes) -> Work:
        rows, vocabulary = sizes.rows, sizes.vocab_size
        flops = (2 * products * sizes.dim + 4) * rows * vocabulary
        return Work(flops, copies * (rows + vocabulary) * sizes.dim, 8 * rows)

    return work


def of_attention(products: int, of_q: int, of_kv: int) -> Callable[[Sizes], Work]:
    """Each token meets itself and the earlier ones. The usual count: two products forward, five
    backward, of which one makes the scores again."""

    def work(sizes: Sizes) -> Work:
        met = sizes.batch * sizes.n_heads * sizes.length * (sizes.length + 1) // 2
        heads = of_q * sizes.n_heads + of_kv * sizes.n_kv_heads
        return Work(2 * products * met * sizes.head_dim, sizes.rows * heads * sizes.head_dim)

    return work


def of_adamw(sizes: Sizes) -> Work:
    """Two moments, their correction, root and quotient, and the decay."""
    values = sizes.hidden_dim * sizes.dim
    return Work(14 * values, 7 * values)


def of_gradient_clipping(sizes: Sizes) -> Work:
    """Gradients are read twice: before the last of them is, the factor is not known."""
    values = (sizes.hidden_dim + 1) * sizes.dim
    return Work(3 * values, 3 * values)


def of_newton_schulz(iterations: int) -> Callable[[Sizes], Work]:
    """Three products an iteration; that two of them are symmetric is not counted."""

    def work(sizes: Sizes) -> Work:
        short, long = sorted((sizes.hidden_dim, sizes.dim))
        products = 2 * short * short * long + short**3
        return Work(2 * iterations * products, 2 * short * long)

    return work
