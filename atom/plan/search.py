"""Find the layouts with the shortest step by branch and bound.

1. A shape (degrees and sequences of a forward pass) is bounded by its computation without
   recomputation, and by the least idle time of a pipeline.
2. The layouts of the shape with the least bound are bounded by what they recompute, by data
   parallelism and by the optimizer, and dropped if the first pipeline rank's memory is too small.
3. The layout with the least bound is estimated exactly; the search ends when no bound is below the
   steps that are wanted.

Ties are broken by the candidates' own order, so a search always finds the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from atom.errors import UserError
from atom.plan.candidates import INTERLEAVED, ONE_CHUNK, Candidate, Shape, Space
from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.layout import Layout
from atom.plan.memory import Memory, memory
from atom.plan.model import NONE, ModelDescription
from atom.plan.time.data_parallel import optimizer, sharded
from atom.plan.time.own_constants import of_device
from atom.plan.time.stages import Stage, stages
from atom.plan.time.step import slowest
from atom.plan.work import work

HEADROOM = 0.9
"""Fraction of the device's memory that an estimate may reach.

Estimates are within 10 % of measurements (``benchmarks/results/memory.md``).
"""

SLACK = 0.98
"""Of a bound. Stages of different lengths can be a little faster than the average stage."""

MOST = 400
"""Exact estimates of one search."""

_FILLS = (ONE_CHUNK, INTERLEAVED, "GPipe")
"""Schedules that are idle while the pipeline fills and drains."""


@dataclass(frozen=True)
class Tried:
    """A candidate with its estimate, or the reason why it is impossible."""

    candidate: Candidate
    estimate: Estimate | None = None
    problem: str = ""

    @property
    def fits(self) -> bool:
        found = self.estimate
        return found is not None and found.memory.total <= HEADROOM * found.limit

    @property
    def key(self) -> tuple[float, int, Candidate]:
        """Return a sort key: time to three digits, then replicas, then the candidate's order."""
        assert self.estimate is not None
        seconds = float(f"{self.estimate.step.seconds:.3g}")
        return seconds, self.candidate.replicate, self.candidate


@dataclass
class Found:
    """The result of a search.

    Attributes:
        fitting: layouts that fit, the shortest step first, the best of each set of degrees.
        closest: the layout that needs the least memory of those that were dropped, and its bytes.
        problem: why the first impossible layout is impossible.
        bounded: layouts whose bound was computed.
        estimated: layouts that were estimated exactly.
    """

    fitting: list[Tried] = field(default_factory=list)
    closest: tuple[int, Candidate] | None = None
    problem: str = ""
    bounded: int = 0
    estimated: int = 0

    def dropped(self, needed: int, candidate: Candidate) -> None:
        """Remember a layout that is too large."""
        if self.closest is None or (needed, candidate) < self.closest:
            self.closest = (needed, candidate)


class Search:
    """A search over a :class:`Space`.

    Args:
        space: the layouts.
        template: a layout of the run: precision, optimizer, kernels.
        model: the model.
        device: its device.
        estimate: returns the exact estimate of a candidate, or raises a ``UserError``.
        constants: of the time model.
    """

    def __init__(
        self,
        space: Space,
        template: Layout,
        model: ModelDescription,
        device: DeviceDescription,
        estimate: Callable[[Candidate], Estimate],
        constants: Constants | None = None,
    ) -> None:
        self.space, self.template, self.model, self.device = space, template, model, device
        self._estimate, self._constants = estimate, constants or of_device(device)
        self._work = work(model)
        self._needed: dict[tuple[object, ...], dict[int, int]] = {}
        self._bounds: dict[Candidate, float] = {}
        self._whole: dict[tuple[Shape, str], Stage] = {}
        self._tried: dict[Candidate, Tried] = {}
        self._refused: dict[tuple[object, ...], str] = {}

    def best(
        self,
        wanted: int = 1,
        *,
        among: Callable[[Candidate], bool] | None = None,
        most: int = MOST,
    ) -> Found:
        """Return the best layouts.

        Args:
            wanted: number of sets of degrees to find.
            among: whether a candidate is considered; all are by default.
            most: exact estimates after which the search ends, if it has found a layout.
        """
        found = Found()
        each: dict[tuple[int, ...], Tried] = {}
        heap: list[tuple[float, int, Shape | Candidate]] = []
        for shape in self.space.shapes():
            heap.append((self._least(shape), 0, shape))
        heapq.heapify(heap)
        while heap and (found.estimated < most or not each):
            bound, _, node = heapq.heappop(heap)
            if len(each) >= wanted and bound * SLACK > self._worst(each, wanted):
                break
            if isinstance(node, Shape):
                self._branch(node, heap, found, among)
                continue
            if bound == float("inf"):
                continue
            tried = self._exact(node, found)
            if tried.fits:
                key = node.shape.degrees
                if key not in each or tried.key < each[key].key:
                    each[key] = tried
            elif tried.estimate is not None:
                found.dropped(tried.estimate.memory.total, node)
            elif not found.problem:
                found.problem = tried.problem
        found.fitting = sorted(each.values(), key=lambda tried: tried.key)[:wanted]
        return found

    def _branch(
        self,
        shape: Shape,
        heap: list[tuple[float, int, Shape | Candidate]],
        found: Found,
        among: Callable[[Candidate], bool] | None,
    ) -> None:
        """Add the layouts of ``shape`` that may fit to ``heap``."""
        for candidate in self.space.candidates(shape):
            if among is not None and not among(candidate):
                continue
            found.bounded += 1
            needed = self._needs(candidate)
            if needed > HEADROOM * self.device.memory:
                found.dropped(needed, candidate)
                continue
            heapq.heappush(heap, (self._bound(candidate), 1, candidate))

    @staticmethod
    def _worst(each: dict[tuple[int, ...], Tried], wanted: int) -> float:
        times = sorted(t.estimate.step.seconds for t in each.values() if t.estimate is not None)
        return times[wanted - 1]

    def _exact(self, candidate: Candidate, found: Found) -> Tried:
        if candidate in self._tried:
            return self._tried[candidate]
        # What is wrong with one sharding or checkpointing is wrong with all of them.
        key = (candidate.shape, candidate.microbatches, candidate.schedule, candidate.chunks)
        if key in self._refused:
            return Tried(candidate, problem=self._refused[key])
        found.estimated += 1
        try:
            tried = Tried(candidate, self._estimate(candidate))
        except UserError as error:
            self._refused[key] = error.sentence()
            tried = Tried(candidate, problem=error.sentence())
        self._tried[candidate] = tried
        return tried

    # ------------------------------------------------------------------ bounds

    def _stage(self, shape: Shape, mode: str) -> Stage:
        """Return an average pipeline stage of ``shape``."""
        key = (shape, mode)
        if key not in self._whole:
            each = self.space.batch * shape.inner // self.space.ranks // shape.sequences
            one = Candidate(shape, 1, 1, 1, max(each, 1), mode, reshard=True)
            (whole, *_) = stages(
                self._work, one.layout(self.template), self.device, self._constants
            )
            share = 1.0 / shape.pp
            self._whole[key] = Stage(
                whole.forward * share,
                whole.backward * share,
                max(round(whole.blocks * share), 1),
                whole.numel * share,
                whole.experts * share,
            )
        return self._whole[key]

    def _least(self, shape: Shape) -> float:
        """Return a bound of the step of every layout of ``shape``."""
        stage = self._stage(shape, NONE)
        each = self.space.batch // (self.space.ranks // shape.inner) / shape.sequences
        return sum(stage.seconds) * each * self._late

    @property
    def _late(self) -> float:
        return 1 + self._constants.straggler * slowest(self.space.ranks)

    def _bound(self, candidate: Candidate) -> float:
        """Return a bound of the candidate's step."""
        if candidate not in self._bounds:
            self._bounds[candidate] = self._computed(candidate)
        return self._bounds[candidate]

    def _computed(self, candidate: Candidate) -> float:
        shape = candidate.shape
        layout = candidate.layout(self.template)
        stage = self._stage(shape, candidate.mode)
        once = sum(stage.seconds)
        seconds = once * layout.passes + self._constants.step
        # One chunk of an interleaved schedule: the split is the user's, and is not known here.
        known = candidate.chunks > 1 or candidate.schedule != INTERLEAVED
        if candidate.schedule in _FILLS and known:
            seconds += (shape.pp - 1) / candidate.chunks * once * candidate.accumulation
        cost = sharded(stage, layout, self.device, self._constants)
        seconds += cost.fsdp + cost.replicate
        seconds += optimizer(stage, layout, self.device, self._constants)
        return seconds * self._late

    def _needs(self, candidate: Candidate) -> int:
        """Return the bytes that the first pipeline rank needs at least, as with one stage a rank.

        With more sharding it needs less, so what is too large is not computed again for less.
        """
        shape = candidate.shape
        key = (shape, candidate.microbatches, candidate.mode, candidate.reshard)
        known = self._needed.setdefault(key, {})
        if candidate.shard not in known:
            larger = [n for shard, n in known.items() if shard > candidate.shard]
            if larger and min(larger) > HEADROOM * self.device.memory:
                known[candidate.shard] = min(larger)
            else:
                known[candidate.shard] = self._memory(candidate).total
        return known[candidate.shard]

    def _memory(self, candidate: Candidate) -> Memory:
        layout = candidate.layout(self.template)
        if candidate.shape.pp > 1:
            each = max((self.space.layers + 2) // candidate.shape.pp - 1, 1)
            first = [part for part in layout.stages[0] if part not in self.model.blocks][:1]
            blocks = list(self.model.blocks)[:each]
            layout = replace(layout, stages=((*first, *blocks), *layout.stages[1:]))
        return memory(self.model, layout, reserve=self.device.reserve)
