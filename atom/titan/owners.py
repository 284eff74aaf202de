"""Work on whole matrices that are in parts on many ranks: each is whole on one rank only.

The ranks of a mesh take turns in owning matrices. Along one axis of the mesh after the other, each
sends its part of a matrix towards the owner's place, which puts the parts together. When the owner
has computed, parts of the result go back the same way. So a rank computes for its share of the
matrices, has one whole matrix at a time, and sends about as much as it would to gather its share.

Axes that hold copies, as HSDP's, do not share: each copy computes for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Size, Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from atom.titan.parts import chunks, dividing_axes


def on_owners(
    tensors: Sequence[DTensor],
    part: Callable[[DTensor], Tensor],
    compute: Callable[[Tensor], Tensor],
    *,
    dtype: torch.dtype,
) -> Iterator[tuple[DTensor, Tensor]]:
    """Yield each of ``tensors``, in another order, with this rank's part of what is computed of it.

    All ranks of a mesh call this with the same tensors in the same order.

    Args:
        tensors: how they are divided; their values are not looked at.
        part: of one of them: what this rank has of the tensor to compute with.
        compute: of the whole: a tensor of the same shape.
        dtype: of parts, wholes and results.
    """
    together: dict[Any, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        mesh = tensor.device_mesh
        axes = tuple(axis for axis in dividing_axes(tensor) if mesh.size(axis) > 1)
        together[mesh, axes].append(number)
    for (mesh, axes), numbers in together.items():
        owners = prod(mesh.size(axis) for axis in axes)
        # The largest first: those of a round then keep their owners busy for about as long.
        numbers.sort(key=lambda number: -tensors[number].numel())
        for begin in range(0, len(numbers), owners):
            these = {number: tensors[number] for number in numbers[begin : begin + owners]}
            yield from _Round(mesh, axes, these, dtype).run(part, compute)


@dataclass(frozen=True)
class _Round:
    """As many tensors as there are owners, or fewer, by number.

    A level is a place in ``axes``: those that divide the tensors, in the order in which they do.
    """

    mesh: DeviceMesh
    axes: tuple[int, ...]
    tensors: dict[int, DTensor]
    dtype: torch.dtype

    def run(
        self, part: Callable[[DTensor], Tensor], compute: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[DTensor, Tensor]]:
        held = {number: part(tensor) for number, tensor in self.tensors.items()}
        for level in reversed(range(len(self.axes))):
            held = self._gathered(level, held)
        held = {number: compute(whole) for number, whole in held.items()}
        for level in range(len(self.axes)):
            held = self._scattered(level, held)
        yield from ((self.tensors[number], result) for number, result in held.items())

    def _gathered(self, level: int, held: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return, put together along the axis of ``level``, those whose owner has this rank's place
        on it."""
        to = self._by_owner(level, held)
        mine = self._place(level)
        received = self._exchanged(
            level,
            [[held[number] for number in numbers] for numbers in to],
            [[self._shapes(number, level)[rank] for number in to[mine]] for rank in range(len(to))],
        )
        return {
            number: torch.cat([pieces[n] for pieces in received], dim=self._dim(number, level))
            for n, number in enumerate(to[mine])
        }

    def _scattered(self, level: int, held: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return this rank's parts of what the ranks along the axis of ``level`` hold."""
        after = range(level + 1, len(self.axes))
        of = self._by_owner(
            level,
            [n for n in self.tensors if all(self._owner(n, a) == self._place(a) for a in after)],
        )
        mine, ranks = self._place(level), len(of)
        divided = {n: self._chunks(whole, n, level) for n, whole in held.items()}
        received = self._exchanged(
            level,
            [[divided[number][rank] for number in of[mine]] for rank in range(ranks)],
            [[self._shapes(number, level)[mine] for number in numbers] for numbers in of],
        )
        return dict(zip(chain(*of), chain(*received), strict=True))

    def _exchanged(
        self, level: int, sent: list[list[Tensor]], shapes: list[list[Size]]
    ) -> list[list[Tensor]]:
        """Send tensors to each rank along an axis; return those that each has sent."""
        device = next(iter(self.tensors.values())).to_local().device
        sizes = [sum(shape.numel() for shape in each) for each in shapes]
        received = torch.empty(sum(sizes), dtype=self.dtype, device=device)
        empty = received.new_empty(0)
        dist.all_to_all_single(
            received,
            torch.cat([empty, *(piece.reshape(-1) for piece in chain(*sent))]),
            sizes,
            [sum(piece.numel() for piece in each) for each in sent],
            group=self.mesh.get_group(self.axes[level]),
        )
        flat = iter(received.split([shape.numel() for shape in chain(*shapes)]))
        return [[next(flat).view(shape) for shape in each] for each in shapes]

    def _by_owner(self, level: int, numbers: Iterable[int]) -> list[list[int]]:
        """Return ``numbers`` by their owners' place on the axis of ``level``."""
        found: list[list[int]] = [[] for _ in range(self.mesh.size(self.axes[level]))]
        for number in numbers:
            found[self._owner(number, level)].append(number)
        return found

    def _owner(self, number: int, level: int) -> int:
        """Return the place of a tensor's owner on the axis of ``level``."""
        sizes = [self.mesh.size(axis) for axis in self.axes]
        turn = list(self.tensors).index(number)
        return turn // prod(sizes[level + 1 :]) % sizes[level]

    def _place(self, level: int) -> int:
        """Return this rank's place on the axis of ``level``."""
        return self.mesh.get_local_rank(self.axes[level])

    def _dim(self, number: int, level: int) -> int:
        placement: Any = self.tensors[number].placements[self.axes[level]]
        return int(placement.dim)

    def _shapes(self, number: int, level: int) -> list[Size]:
        """Return the shapes that a tensor is divided into along the axis of ``level``, where this
        rank is on the axes before."""
        found = torch.empty(self.tensors[number].shape, device="meta")
        for before in range(level):
            found = self._chunks(found, number, before)[self._place(before)]
        return [chunk.shape for chunk in self._chunks(found, number, level)]

    def _chunks(self, tensor: Tensor, number: int, level: int) -> list[Tensor]:
        return chunks(tensor, self.mesh.size(self.axes[level]), self._dim(number, level))
