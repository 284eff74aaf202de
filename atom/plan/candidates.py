"""List the layouts that a number of ranks can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

from atom.plan.layout import Layout
from atom.plan.model import MODES

ONE_CHUNK, INTERLEAVED = "1F1B", "Interleaved1F1B"
MOST_CHUNKS = 16


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """The part of a layout that the time of a forward pass depends on."""

    pp: int
    cp: int
    tp: int
    ep: int
    sequences: int

    @property
    def degrees(self) -> tuple[int, int, int, int]:
        return self.pp, self.cp, self.tp, self.ep

    @property
    def inner(self) -> int:
        """Return the ranks that share a copy of the model, apart from FSDP."""
        return self.pp * self.cp * self.tp


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A layout to consider.

    ``microbatches`` are those of a pipeline, 1 without one; ``accumulation`` counts local batches
    of a step; ``chunks`` are pipeline stages of a rank; ``reshard`` says whether FSDP frees
    parameters after forward.
    """

    shape: Shape
    replicate: int
    shard: int
    microbatches: int
    accumulation: int
    mode: str
    reshard: bool
    schedule: str = ONE_CHUNK
    chunks: int = 1

    @property
    def local_batch_size(self) -> int:
        return self.shape.sequences * self.microbatches

    def layout(self, template: Layout) -> Layout:
        """Return the layout for bounds: stages are not split, the pipeline has no order.

        ``template`` is any layout of the run.
        """
        parts = tuple(part for stage in template.stages for part in stage)
        shape = self.shape
        return replace(
            template,
            dp_replicate=self.replicate,
            dp_shard=self.shard,
            tp=shape.tp,
            pp=shape.pp,
            cp=shape.cp,
            ep=shape.ep,
            local_batch_size=self.local_batch_size,
            microbatch_size=shape.sequences,
            accumulation=self.accumulation,
            reshard=self.reshard,
            schedule=self.schedule,
            stages=(parts, *((),) * (shape.pp * self.chunks - 1)),
            stages_of=((0,),),
            in_flight=({0: min(shape.pp, self.microbatches)},),
            checkpointing=self.mode,
            order=None,
        )


@dataclass(frozen=True)
class Space:
    """The layouts that ranks can have.

    Attributes:
        ranks: their number.
        batch: sequences of a step.
        seq_len: tokens of a sequence; 0 if it is not known yet.
        layers: blocks of the model.
        node: ranks that tensor parallelism may use.
        experts: a number of experts that their ranks divide; 0 without experts.
        wished: degrees that the user has set, by the names of :class:`Shape` and
            :class:`Candidate`, and ``schedule``, ``reshard``.
        modes: of activation checkpointing.
        local: the local batch that the user has set.
        chunks: stages of a pipeline rank; several are interleaved.
    """

    ranks: int
    batch: int
    seq_len: int
    layers: int
    node: int = 8
    experts: int = 0
    wished: Mapping[str, object] = field(default_factory=dict)
    modes: Sequence[str] = MODES
    local: int | None = None
    chunks: Sequence[int] = tuple(range(1, MOST_CHUNKS + 1))

    def degrees(self) -> Iterator[Shape]:
        """Yield the degrees that ranks can have, with one sequence."""
        for inner in divisors(self.ranks):
            for tp in divisors(inner):
                for pp in divisors(inner // tp):
                    cp = inner // tp // pp
                    if tp > max(self.node, 1) or pp > self.layers:
                        continue
                    if self.seq_len and cp > 1 and self.seq_len % (2 * cp):
                        continue
                    for ep in self._experts(inner // pp):
                        shape = Shape(pp, cp, tp, ep, 1)
                        if self._wished(pp=pp, cp=cp, tp=tp, ep=ep):
                            yield shape

    def shapes(self) -> Iterator[Shape]:
        """Yield all shapes whose data-parallel ranks divide the batch."""
        for shape in self.degrees():
            for sequences in self._sequences(shape):
                yield replace(shape, sequences=sequences)

    def candidates(self, shape: Shape) -> Iterator[Candidate]:
        """Yield the layouts of a shape."""
        data = self.ranks // shape.inner
        each = self.batch // data
        local = (self.local or each) if shape.pp > 1 else shape.sequences
        microbatches = local // shape.sequences
        for shard in reversed(divisors(data)):
            if not self._wished(shard=shard, replicate=data // shard):
                continue
            if (shard * shape.cp * shape.tp) % shape.ep:
                continue
            for mode in self.modes:
                for reshard in self._reshard(shape, shard):
                    for schedule, chunks in self._schedules(shape, microbatches):
                        yield Candidate(
                            shape,
                            data // shard,
                            shard,
                            microbatches,
                            each // local,
                            mode,
                            reshard,
                            schedule,
                            chunks,
                        )

    def indivisible(self) -> list[int]:
        """Return the numbers of data-parallel ranks that do not divide the batch."""
        found = {self.ranks // shape.inner for shape in self.degrees()}
        return sorted(data for data in found if self.batch % data)

    def _sequences(self, shape: Shape) -> list[int]:
        """Return the sequences of a forward pass."""
        data = self.ranks // shape.inner
        if self.batch % data:
            return []
        each = self.batch // data
        if self.local is not None and each % self.local:
            return []
        if shape.pp == 1:
            return divisors(each) if self.local is None else [self.local]
        local = self.local or each
        wished = self.wished.get("sequences")
        sizes = [n for n in divisors(local) if local // n >= shape.pp]
        return [n for n in sizes if wished in (None, n)]

    def _schedules(self, shape: Shape, microbatches: int) -> Iterator[tuple[str, int]]:
        if shape.pp == 1:
            yield ONE_CHUNK, 1
            return
        wished = self.wished.get("schedule")
        if wished not in (None, ONE_CHUNK, INTERLEAVED) or self.chunks == (1,):
            yield str(wished or ONE_CHUNK), 1
            return
        for chunks in self.chunks:
            name = ONE_CHUNK if chunks == 1 else INTERLEAVED
            if wished not in (None, name):
                continue
            if chunks == 1:
                yield ONE_CHUNK, 1
            elif microbatches % shape.pp == 0 and self.layers_per_stage(shape.pp * chunks):
                yield INTERLEAVED, chunks

    def layers_per_stage(self, stages: int) -> int:
        """Return the layers of one of ``stages`` stages; 0 if the model cannot be split so.

        The embedding and the output layer count as a layer each.
        """
        if stages > self.layers:
            return 0
        each = -(-(self.layers + 2) // stages)
        return each if -(-(self.layers + 2) // each) == stages else 0

    def _experts(self, inner: int) -> list[int]:
        """Return the ranks that share the experts: those that divide all of them."""
        if not self.experts:
            return [1]
        most = self.ranks // max(inner, 1) * inner
        return [n for n in divisors(self.experts) if most % n == 0]

    def _reshard(self, shape: Shape, shard: int) -> list[bool]:
        wished = self.wished.get("reshard")
        if wished is not None:
            return [bool(wished)]
        # A pipeline keeps parameters gathered between micro-batches.
        if shape.pp > 1:
            return [False]
        return [True, False] if shard * shape.cp > 1 else [True]

    def _wished(self, **given: int) -> bool:
        return all(self.wished.get(name) in (None, n) for name, n in given.items())


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number``, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def shared_experts(counts: Sequence[int]) -> int:
    """Return the greatest number that divides all ``counts``; 0 without any."""
    return gcd(*counts) if counts else 0
