"""Compute the number of sequences of each step: the schedule of the global batch.

Sequences are numbered over the whole run, and a step trains on the next ones. Sequence n is read by
lane n modulo G, with G the largest batch, so that the sequences of a run with a schedule are those
of a run that has the largest batch in every step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import gcd

from atom.errors import UserError
from atom.recipe.defaults import value
from atom.recipe.run import Run
from atom.recipe.training_sections import BatchStage

_MOST_SIZES = 10_000
"""Sizes of one ramp."""


@dataclass(frozen=True)
class Batches:
    """The batch of each step.

    Args:
        pieces: steps and their number of sequences, one after another.
        last: the number of sequences of all later steps.
        seq_len: tokens of a sequence.
    """

    pieces: tuple[tuple[int, int], ...]
    last: int
    seq_len: int = 1

    @cached_property
    def _ends(self) -> list[int]:
        """The last step of each piece."""
        return list(accumulate(steps for steps, _ in self.pieces))

    @cached_property
    def _read(self) -> list[int]:
        """The sequences up to the end of each piece."""
        return list(accumulate(steps * size for steps, size in self.pieces))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The different numbers of sequences, in ascending order."""
        return tuple(sorted({size for _, size in self.pieces} | {self.last}))

    @property
    def largest(self) -> int:
        return self.sizes[-1]

    @property
    def unit(self) -> int:
        """The greatest common divisor of all sizes."""
        return gcd(*self.sizes)

    @property
    def constant(self) -> bool:
        return len(self.sizes) == 1

    def size(self, step: int) -> int:
        """Return the sequences of a step, counted from 1."""
        place = bisect_right(self._ends, step - 1)
        return self.pieces[place][1] if place < len(self.pieces) else self.last

    def sequences(self, steps: int) -> int:
        """Return the sequences of the first ``steps`` steps together."""
        place = bisect_right(self._ends, steps)
        size = self.pieces[place][1] if place < len(self.pieces) else self.last
        before, read = (self._ends[place - 1], self._read[place - 1]) if place else (0, 0)
        return read + (steps - before) * size

    def tokens(self, steps: int) -> int:
        """Return the tokens of the first ``steps`` steps together."""
        return self.sequences(steps) * self.seq_len

    def steps(self, tokens: int, after: int = 0) -> int:
        """Return how many steps after the first ``after`` ones have at least ``tokens``."""
        wanted = self.sequences(after) + -(-tokens // self.seq_len)
        place = bisect_right(self._read, wanted - 1)
        size = self.pieces[place][1] if place < len(self.pieces) else self.last
        before, read = (self._ends[place - 1], self._read[place - 1]) if place else (0, 0)
        return before - (read - wanted) // size - after

    def rounds(self, steps: int, begin: int = 0) -> int:
        """Return how often each lane is read in the first ``steps`` steps, rounded up.

        If the data begins anew after step ``begin``, lane 0 is the first one after it.
        """
        before = -(-self.sequences(begin) // self.largest)
        return before - (self.sequences(begin) - self.sequences(max(steps, begin))) // self.largest

    def counts(self, steps: int) -> dict[int, int]:
        """Return size -> the number of the first ``steps`` steps that have it."""
        found: dict[int, int] = {}
        before = 0
        for end, (_, size) in zip(self._ends, self.pieces, strict=True):
            if (count := min(end, steps) - before) > 0:
                found[size] = found.get(size, 0) + count
            before = min(end, steps)
        if steps > before:
            found[self.last] = found.get(self.last, 0) + steps - before
        return found

    def turns(self, steps: int) -> list[int]:
        """Return the first step of each size within the first ``steps`` steps."""
        return [1, *(end + 1 for end in self._ends if end < steps)]


def described(batches: Batches, steps: int) -> str:
    """Return the sequences of the first and last step, in words."""
    first, last = batches.size(1), batches.size(steps)
    if len(batches.counts(steps)) == 1:
        return f"{first:,}"
    return f"{first:,} to {last:,}" if first != last else f"{first:,}, with a schedule"


def batches(run: Run, sequences: int | None = None) -> Batches:
    """Return the batches of a run.

    Args:
        run: a run.
        sequences: the global batch size, if the run leaves it open.

    Raises:
        UserError: a stage of the schedule is impossible.
    """
    wanted = int(value(run, "training.global_batch_size"))
    last, seq_len = wanted if wanted > 0 else (sequences or wanted), run.training.seq_len
    stages = run.training.batch_schedule
    if not stages:
        return Batches((), last, seq_len)
    if wanted < 1:
        raise UserError(
            "is the batch after training.batch_schedule",
            valid="a number of sequences",
            key="training.global_batch_size",
            value=wanted,
        )
    pieces: list[tuple[int, int]] = []
    for number, stage in enumerate(stages):
        later = stages[number + 1].global_batch_size if number + 1 < len(stages) else last
        _check(stage, f"training.batch_schedule.{number}", later, last)
        for steps, size in _pieces(stage, later, seq_len):
            if pieces and pieces[-1][1] == size:
                pieces[-1] = pieces[-1][0] + steps, size
            elif steps:
                pieces.append((steps, size))
    return Batches(tuple(pieces), last, seq_len)


def _check(stage: BatchStage, key: str, later: int, last: int) -> None:
    """Refuse a stage without one length, above the largest batch, or with an uneven ramp."""
    if (stage.steps is None) == (stage.tokens is None):
        raise UserError(
            "has no length" if stage.steps is None else "has two lengths",
            valid="one of steps and tokens",
            key=key,
        )
    size, rise = stage.global_batch_size, stage.increment
    if size > last:
        raise UserError(
            f"is more than training.global_batch_size={last}, which is the largest batch",
            valid=f"at most {last}",
            key=f"{key}.global_batch_size",
            value=size,
        )
    if rise is None:
        return
    if later <= size or (later - size) % rise:
        why = (
            f"must divide {later - size}, the way from {size} to {later} sequences"
            if later > size
            else f"has no effect: the batch after the stage, {later}, is not above its {size}"
        )
        raise UserError(why, key=f"{key}.increment", value=rise)
    if (later - size) // rise > _MOST_SIZES:
        raise UserError(
            f"makes {(later - size) // rise:,} sizes",
            valid=f"at most {_MOST_SIZES:,}",
            key=f"{key}.increment",
            value=rise,
        )


def _pieces(stage: BatchStage, later: int, seq_len: int) -> Sequence[tuple[int, int]]:
    """Return the steps of each size of a stage: of a ramp, each has an equal part of its length.

    In tokens, a size ends with the first step at which its part and those before are complete.
    """
    first, rise = stage.global_batch_size, stage.increment
    sizes = [first] if rise is None else list(range(first, later, rise))
    count = len(sizes)
    if stage.steps is not None:
        ends = [stage.steps * part // count for part in range(count + 1)]
        return [(ends[part + 1] - ends[part], size) for part, size in enumerate(sizes)]
    assert stage.tokens is not None
    found, done = [], 0
    for part, size in enumerate(sizes):
        missing = stage.tokens * (part + 1) - done * count  # tokens x count
        steps = max(-(-missing // (size * seq_len * count)), 0)
        done += steps * size * seq_len
        found.append((steps, size))
    return found
