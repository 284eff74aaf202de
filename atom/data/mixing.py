"""Choose the source of each sequence of a mixture, exactly and by computation.

A step has G sequences. Source k with weight w has floor(G·w) or ceil(G·w) of them in every step,
and G·w on average: the G points (m + θ)/G, evenly spaced and shifted by θ, fall into intervals as
wide as the weights (systematic sampling). θ changes from step to step by the golden ratio, so that
a source with few sequences comes at even intervals, too. Each lane has one of the points; in a
step, all lanes move on by the same number of points, so that each lane reads every source as often
as the others, to a few sequences. All of this depends on the seed, the step and the weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from atom.data.dealing import dealt
from atom.data.order import Order
from atom.errors import UserError
from atom.plugin import LaneSource, Mixture, Stage

_UNIT = 1 << 40
"""Distance of two points. G·2⁴⁰ must fit into 63 bits."""

MOST_SEQUENCES = 1 << 22
"""Most sequences of a step of a mixture."""

_GOLDEN = 679_561_669_891
"""About 2⁴⁰ divided by the golden ratio, and odd."""

_SILVER = 455_432_628_211
"""About 2⁴⁰·(√2 - 1), and odd: lanes move on independently of θ."""

Choices = npt.NDArray[np.int64]


class Schedule:
    """The sources of a mixture by step.

    Args:
        names: the sources, in their order.
        stages: at least one; the first begins at step 0.
        lanes: G, sequences of a step.
        seed: seed of the shuffle that gives each lane its first point.
    """

    def __init__(
        self, names: Sequence[str], stages: Sequence[Stage], lanes: int, *, seed: int
    ) -> None:
        if not stages or stages[0].step != 0:
            raise ValueError("the first stage begins at step 0")
        self.names = tuple(names)
        self.stages = tuple(stages)
        self._lanes = lanes
        self._seed = seed
        self._bounds = [_bounds(self.names, stage.weights, lanes) for stage in stages]
        self._ends = [np.array(bounds, dtype=np.int64) for bounds in self._bounds]
        self._firsts = [stage.step for stage in stages]

    def stage(self, step: int) -> int:
        """Return the number of the stage that ``step``, counted from 0, belongs to."""
        return int(np.searchsorted(self._firsts, step, side="right")) - 1

    def choices(self, step: int) -> Choices:
        """Return the source of each lane in ``step``, counted from 0: array [G] of indices."""
        return self.choice(step, slice(None))

    def choice(self, step: int, lanes: slice) -> Choices:
        """Return the source of some lanes in ``step``."""
        first = _first_points(self._lanes, self._seed)[lanes]
        moved = (first + self._lanes * (step * _SILVER % _UNIT) // _UNIT) % self._lanes
        # The last end is exactly G·UNIT, above every point.
        ends = self._ends[self.stage(step)]
        chosen: Choices = np.searchsorted(ends, moved * _UNIT + _shift(step), side="right")
        return chosen

    def counts(self, step: int) -> list[int]:
        """Return how many sequences each source has in ``step``."""
        edges = [_points_below(bound, step) for bound in self._bounds[self.stage(step)]]
        return [after - before for before, after in zip([0, *edges], edges, strict=False)]

    def before(self, step: int, source: int) -> int:
        """Return how many sequences a source has in all steps before ``step``."""
        return _before(self._stretches(step), source)

    def _stretches(self, step: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Return the begin, end and bounds of each stage before ``step``."""
        ends = [*self._firsts[1:], step]
        return tuple(
            (first, min(end, step), bounds)
            for first, end, bounds in zip(self._firsts, ends, self._bounds, strict=True)
            if first < step
        )


def shares(names: Sequence[str], weights: Mapping[str, float | Fraction]) -> list[Fraction]:
    """Return the weights, in the order of ``names``, as fractions that add up to 1."""
    exact = [Fraction(weights.get(name, 0)) for name in names]
    total = sum(exact)
    return [weight / total for weight in exact]


def _bounds(
    names: Sequence[str], weights: Mapping[str, float | Fraction], lanes: int
) -> tuple[int, ...]:
    """Return the upper ends of the sources' intervals, in units."""
    ends, total = [], Fraction(0)
    for share in shares(names, weights):
        total += share
        ends.append(int(total * lanes * _UNIT))
    return tuple(ends)


@lru_cache(maxsize=1024)
def _before(stretches: tuple[tuple[int, int, tuple[int, ...]], ...], source: int) -> int:
    def below(bounds: tuple[int, ...], index: int, begin: int, end: int) -> int:
        if index < 0:
            return 0
        return _sum_below(bounds[index], end) - _sum_below(bounds[index], begin)

    return sum(
        below(bounds, source, begin, end) - below(bounds, source - 1, begin, end)
        for begin, end, bounds in stretches
    )


def _shift(step: int) -> int:
    return step * _GOLDEN % _UNIT


def _points_below(bound: int, step: int) -> int:
    """Return how many of the points m·UNIT + shift of a step are below ``bound``."""
    whole, rest = divmod(bound, _UNIT)
    return whole + (_shift(step) < rest)


def _sum_below(bound: int, steps: int) -> int:
    """Return the sum of :func:`_points_below` over the steps 0 to ``steps`` - 1."""
    whole, rest = divmod(bound, _UNIT)
    # floor((x - rest)/UNIT) is one less than floor(x/UNIT) where x mod UNIT < rest.
    shifted = _floor_sum(steps, _GOLDEN, 0) - _floor_sum(steps, _GOLDEN, -rest)
    return steps * whole + shifted


def _floor_sum(count: int, factor: int, offset: int) -> int:
    """Return the sum of floor((factor·i + offset)/UNIT) over i from 0 to ``count`` - 1, in
    O(log UNIT) steps, like Euclid's algorithm.
    """
    total, divisor = 0, _UNIT
    while True:
        total += count * (count - 1) // 2 * (factor // divisor) + count * (offset // divisor)
        factor, offset = factor % divisor, offset % divisor
        last = factor * count + offset
        if last < divisor:
            return total
        count, offset = divmod(last, divisor)
        divisor, factor = factor, divisor


@lru_cache(maxsize=2)
def _first_points(lanes: int, seed: int) -> Choices:
    points = Order(lanes, seed, 0, 1).at(np.arange(lanes))
    points.setflags(write=False)
    return points


def key_of(source: str) -> str:
    """Return the key that a user sets a source of a mixture by: ``a.b`` is source ``b`` of the
    mixture ``a`` in the run's mixture.
    """
    return f"dataset.sources.{'.sources.'.join(source.split('.'))}"


def leaves(source: LaneSource, tokens_per_step: int, steps: int, begin: int = 0) -> Mixture | None:
    """Return the mixture of a source with nested mixtures resolved, or None if it is not one.

    The sources of a mixture ``b`` in a mixture are named ``b.NAME``; their weights are multiplied.

    Args:
        source: any source.
        tokens_per_step: tokens of the global batch.
        steps: steps of the run.
        begin: steps before the first one that reads the mixture.

    Raises:
        UserError: a mixture does not fit the run.
    """
    if not callable(mixture := getattr(source, "mixture", None)):
        return None
    outer: Mixture = mixture(tokens_per_step=tokens_per_step, steps=steps, begin=begin)
    sources: dict[str, LaneSource] = {}
    max_epochs: dict[str, float] = {}
    parts: dict[str, dict[str, Fraction]] = {}
    for name, inner in outer.sources.items():
        mixed = leaves(dealt(inner), tokens_per_step, steps, begin)
        if mixed is None:
            sources[name], parts[name] = dealt(inner), {name: Fraction(1)}
            if name in outer.max_epochs:
                max_epochs[name] = outer.max_epochs[name]
            continue
        if len(mixed.stages) > 1:
            raise UserError(
                f"the mixture {name} is part of another one",
                valid="stages of the outermost mixture",
                key="dataset.stages",
            )
        names = list(mixed.sources)
        sources |= {f"{name}.{each}": dealt(mixed.sources[each]) for each in names}
        max_epochs |= {f"{name}.{each}": most for each, most in mixed.max_epochs.items()}
        parts[name] = {
            f"{name}.{each}": share
            for each, share in zip(names, shares(names, mixed.stages[0].weights), strict=True)
        }
    stages = [
        replace(
            stage,
            weights={
                leaf: Fraction(weight) * share
                for name, weight in stage.weights.items()
                for leaf, share in parts[name].items()
            },
        )
        for stage in outer.stages
    ]
    return Mixture(sources=sources, stages=tuple(stages), max_epochs=max_epochs)
