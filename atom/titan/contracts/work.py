"""Count the work of an operation: FLOPs and memory traffic.

The counts are lower bounds: every input is read once, every output is written once, and
intermediates are not moved. A backward pass reads the inputs and the output's gradient and writes
the gradients of all floating-point inputs. Additions, products, comparisons, exponentials and the
like count as one FLOP each.

Each function here returns the work as a function of the sizes, or is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atom.titan.contracts.sizes import Sizes


@dataclass(frozen=True)
class Work:
    """FLOPs, elements of the dtype moved at least, and other bytes moved."""

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
    """Count three FLOPs per element; the float32 cache is read once for all sequences."""

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
    """Count no traffic for the values of width F between the products."""

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
    """Count a dense gradient of the table."""
    rows = sizes.rows
    return Work(rows * sizes.dim, (rows + sizes.vocab_size) * sizes.dim, 8 * rows)


def of_cross_entropy(passes: int) -> Callable[[Sizes], Work]:
    """Count four FLOPs per logit: maximum, difference from it, exponential, and sum."""

    def work(sizes: Sizes) -> Work:
        rows = sizes.rows
        return Work(4 * rows * sizes.vocab_size, passes * rows * sizes.vocab_size, 8 * rows)

    return work


def of_linear_cross_entropy(products: int, copies: int) -> Callable[[Sizes], Work]:
    """Count no traffic for the logits."""

    def work(sizes: Sizes) -> Work:
        rows, vocabulary = sizes.rows, sizes.vocab_size
        flops = (2 * products * sizes.dim + 4) * rows * vocabulary
        return Work(flops, copies * (rows + vocabulary) * sizes.dim, 8 * rows)

    return work


def of_attention(products: int, of_q: int, of_kv: int) -> Callable[[Sizes], Work]:
    """Count causal attention in the usual way.

    That is two products forward and five backward, one of which recomputes the scores.
    """

    def work(sizes: Sizes) -> Work:
        met = sizes.batch * sizes.n_heads * sizes.length * (sizes.length + 1) // 2
        heads = of_q * sizes.n_heads + of_kv * sizes.n_kv_heads
        return Work(2 * products * met * sizes.head_dim, sizes.rows * heads * sizes.head_dim)

    return work


def of_adamw(sizes: Sizes) -> Work:
    """Count two moments, their correction, root and quotient, and the decay."""
    values = sizes.hidden_dim * sizes.dim
    return Work(14 * values, 7 * values)


def of_gradient_clipping(sizes: Sizes) -> Work:
    """Count two reads of the gradients: the factor is known only after all of them are read."""
    values = (sizes.hidden_dim + 1) * sizes.dim
    return Work(3 * values, 3 * values)


def of_newton_schulz(iterations: int) -> Callable[[Sizes], Work]:
    """Count three products per iteration; the symmetry of two of them is not exploited."""

    def work(sizes: Sizes) -> Work:
        short, long = sorted((sizes.hidden_dim, sizes.dim))
        products = 2 * short * short * long + short**3
        return Work(2 * iterations * products, 2 * short * long)

    return work
