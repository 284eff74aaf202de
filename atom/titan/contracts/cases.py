"""List the test cases for comparing kernels: sizes, dtypes and strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atom.titan.contracts.sizes import ODD, REGULAR, Sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """One comparison.

    ``strides`` is a key of :data:`STRIDES`. ``gradient`` is another, for the output's gradient, or
    None for the same.
    """

    sizes: Sizes
    dtype: str
    strides: str = "contiguous"
    gradient: str | None = None

    def __str__(self) -> str:
        gradient = f", gradient {self.gradient}" if self.gradient else ""
        return f"{self.sizes}, {self.dtype}, {self.strides}{gradient}"


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """Swap batch and length (or length and heads) in memory; a vector stays as it is."""
    if tensor.dim() < 2:
        return tensor.contiguous()
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _rows_apart(tensor: torch.Tensor) -> torch.Tensor:
    """Leave a gap after each row, as in a slice of a larger tensor."""
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 8), float("nan"))
    wide[..., : tensor.shape[-1]] = tensor
    return wide[..., : tensor.shape[-1]]


def _every_other(tensor: torch.Tensor) -> torch.Tensor:
    """Place no two elements of a row next to each other in memory."""
    wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), float("nan"))
    wide[..., ::2] = tensor
    return wide[..., ::2]


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Expand one number to the whole shape, as in the gradient of a sum or a mean."""
    return tensor.flatten()[:1].view([1] * tensor.dim()).expand(tensor.shape)


STRIDES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": _transposed,
    "rows apart": _rows_apart,
    "every other element": _every_other,
}
GRADIENTS = {"expanded": _expanded, **STRIDES}
"""Strides of an output's gradient."""
MAY_REFUSE = ("every other element",)
"""Strides that no model produces. A kernel may raise an error, but must not be wrong silently."""

MAY_REFUSE_GRADIENT = (*MAY_REFUSE, "expanded")
"""The same for gradients: torch's grouped product on a CPU refuses an expanded one."""


def regular(dtypes: list[str]) -> Iterator[Case]:
    return (Case(sizes, dtype) for sizes in REGULAR for dtype in dtypes)


def odd(dtypes: list[str]) -> Iterator[Case]:
    return (Case(sizes, dtype) for sizes in ODD for dtype in dtypes)


def strided(dtypes: list[str]) -> Iterator[Case]:
    return (
        Case(sizes, dtypes[0], strides) for sizes in (REGULAR[0], ODD[1]) for strides in STRIDES
    )


def strided_gradients(dtypes: list[str]) -> Iterator[Case]:
    sizes = REGULAR[0]
    gradients = [name for name in GRADIENTS if name not in MAY_REFUSE]
    yield from (Case(sizes, dtypes[0], gradient=gradient) for gradient in gradients)
    yield from (Case(sizes, dtypes[0], name, gradient="contiguous") for name in gradients[1:])
