"""Process sharded matrices whole, each on one owning rank.

The ranks of a mesh take turns in owning matrices. Along one mesh axis after another, each rank
sends its shard of a matrix towards the owner, which concatenates the shards. After the computation,
shards of the result return the same way. So a rank computes its share of the matrices, holds one
whole matrix at a time, and sends about as much as gathering its share would.

Axes that replicate, such as HSDP's, do not share the work: each replica computes for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Size, Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from atom.titan.shards import chunks, dividing_axes, lengths


def on_owners(
    tensors: Sequence[DTensor],
    part: Callable[[DTensor], Tensor],
    compute: Callable[[Tensor], Tensor],
    *,
    dtype: torch.dtype,
) -> Iterator[tuple[DTensor, Tensor]]:
    """Yield each of ``tensors``, in another order, with this rank's shard of its result.

    All ranks of a mesh call this with the same tensors in the same order.

    Args:
        tensors: define the sharding; their values are not read.
        part: returns this rank's local input for one of them.
        compute: maps the whole matrix to a tensor of the same shape, with values that fit
            ``dtype``.
        dtype: of shards, whole matrices and results.
    """
    together: dict[Any, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        mesh = tensor.device_mesh
        axes = tuple(axis for axis in dividing_axes(tensor) if mesh.size(axis) > 1)
        together[mesh, axes].append(number)
    for (mesh, axes), numbers in together.items():
        owners = prod(mesh.size(axis) for axis in axes)
        # The largest first, so that the owners of a round are busy for about the same time.
        numbers.sort(key=lambda number: -tensors[number].numel())
        for begin in range(0, len(numbers), owners):
            these = {number: tensors[number] for number in numbers[begin : begin + owners]}
            yield from _Round(mesh, axes, these, dtype).run(part, compute)


@dataclass(frozen=True)
class _Round:
    """A round of at most one tensor per owner, by number.

    A level is an index into ``axes``: the mesh axes that shard the tensors, in sharding order.
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
        held = {number: self._computed(compute, whole) for number, whole in held.items()}
        for level in range(len(self.axes)):
            held = self._scattered(level, held)
        yield from ((self.tensors[number], result) for number, result in held.items())

    def _computed(self, compute: Callable[[Tensor], Tensor], whole: Tensor) -> Tensor:
        # All ranks must send the same dtype, whatever a plugin's function returns.
        result = compute(whole).to(self.dtype)
        assert result.shape == whole.shape, f"{result.shape} of a tensor of shape {whole.shape}"
        return result

    def _gathered(self, level: int, held: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return the tensors owned at this rank's place, gathered along the axis of ``level``."""
        to = self._by_owner(level, held)
        mine = self._places[level]
        shapes = [self._shapes(number, level) for number in to[mine]]
        received = self._exchanged(
            level,
            [[held[number] for number in numbers] for numbers in to],
            [[each[rank] for each in shapes] for rank in range(len(to))],
        )
        return {
            number: torch.cat([pieces[n] for pieces in received], dim=self._dim(number, level))
            for n, number in enumerate(to[mine])
        }

    def _scattered(self, level: int, held: dict[int, Tensor]) -> dict[int, Tensor]:
        """Return this rank's shards of the tensors held along the axis of ``level``."""
        after = range(level + 1, len(self.axes))
        of = self._by_owner(
            level,
            [n for n in self.tensors if all(self._owner(n, a) == self._places[a] for a in after)],
        )
        mine, ranks = self._places[level], len(of)
        divided = {n: chunks(whole, ranks, self._dim(n, level)) for n, whole in held.items()}
        received = self._exchanged(
            level,
            [[divided[number][rank] for number in of[mine]] for rank in range(ranks)],
            [[self._shapes(number, level)[mine] for number in numbers] for numbers in of],
        )
        return dict(zip(chain(*of), chain(*received), strict=True))

    def _exchanged(
        self, level: int, sent: list[list[Tensor]], shapes: list[list[Size]]
    ) -> list[list[Tensor]]:
        """Send tensors to each rank along an axis; return those received from each."""
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
        """Group ``numbers`` by their owners' place on the axis of ``level``."""
        found: list[list[int]] = [[] for _ in range(self._sizes[level])]
        for number in numbers:
            found[self._owner(number, level)].append(number)
        return found

    def _owner(self, number: int, level: int) -> int:
        """Return the place of a tensor's owner on the axis of ``level``."""
        turn = self._turns[number]
        return turn // prod(self._sizes[level + 1 :]) % self._sizes[level]

    def _dim(self, number: int, level: int) -> int:
        placement: Any = self.tensors[number].placements[self.axes[level]]
        return int(placement.dim)

    def _shapes(self, number: int, level: int) -> tuple[Size, ...]:
        """Return the shapes of a tensor's shards along the axis of ``level``.

        On the axes before it, the shards are those at this rank's place.
        """
        dims = tuple(self._dim(number, each) for each in range(level + 1))
        sizes, places = self._sizes[: level + 1], self._places[:level]
        return _divided(self.tensors[number].shape, dims, sizes, places)

    @cached_property
    def _turns(self) -> dict[int, int]:
        return {number: turn for turn, number in enumerate(self.tensors)}

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """The ranks along each axis."""
        return tuple(self.mesh.size(axis) for axis in self.axes)

    @cached_property
    def _places(self) -> tuple[int, ...]:
        """This rank's place on each axis."""
        return tuple(self.mesh.get_local_rank(axis) for axis in self.axes)


@cache  # the same at every step
def _divided(
    shape: Size, dims: tuple[int, ...], sizes: tuple[int, ...], places: tuple[int, ...]
) -> tuple[Size, ...]:
    """Return the shapes along the last axis, for the shard at this rank's place on earlier axes."""
    for dim, ranks, place in zip(dims, sizes, places, strict=False):
        shape = _parts(shape, dim, ranks)[place]
    return _parts(shape, dims[-1], sizes[-1])


def _parts(shape: Size, dim: int, ranks: int) -> tuple[Size, ...]:
    """Return the shapes of the chunks for ``ranks`` ranks."""
    return tuple(
        Size((*shape[:dim], length, *shape[dim + 1 :])) for length in lengths(shape[dim], ranks)
    )
