"""Choose the checkpoints that a run keeps."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from atom.run_dir import metrics


@dataclass(frozen=True)
class Kept:
    """Which checkpoints are kept.

    Attributes:
        latest: number of newest ones.
        every: those at multiples of this number of steps; 0: none.
        best: number of those with the lowest loss.
        best_of: the validation set with that loss; None: the mean training loss since the
            checkpoint before.
    """

    latest: int
    every: int = 0
    best: int = 0
    best_of: str | None = None

    def among(self, steps: list[int], run: Path) -> set[int]:
        """Return those of ``steps``, ascending, that are kept.

        Args:
            steps: the steps of all checkpoints.
            run: the run folder, for the losses.
        """
        kept = set(steps[-self.latest :])
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        if self.best:
            losses = self._losses(steps, run)
            kept |= set(sorted(losses, key=lambda step: losses[step])[: self.best])
        return kept

    def lowest(self, steps: list[int], run: Path) -> int | None:
        """Return the step of the lowest loss among ``steps``; None without losses."""
        losses = self._losses(steps, run)
        return min(losses, key=lambda step: losses[step], default=None)

    def _losses(self, steps: list[int], run: Path) -> dict[int, float]:
        if self.best_of is None:
            return _mean_losses(run, steps)
        found = _set_losses(run, self.best_of)
        return {step: found[step] for step in steps if step in found}


def _mean_losses(run: Path, steps: list[int]) -> dict[int, float]:
    """Return for each step the mean loss since the step before it in ``steps``.

    Args:
        run: the run folder.
        steps: steps in ascending order; those without a logged loss are left out of the result.
    """
    rows = metrics.read(run / metrics.FILE_NAME)
    found = {}
    for before, step in zip([0, *steps], steps, strict=False):
        losses = [row.loss for row in rows if before < row.step <= step]
        if losses:
            found[step] = statistics.fmean(losses)
    return found


def _set_losses(run: Path, name: str) -> dict[int, float]:
    """Return the finite losses of a validation set by step; ``run`` is the run folder."""
    points = metrics.by_set(metrics.read(run / metrics.FILE_NAME)).get(name, ())
    return {step: found.loss for step, found in points if math.isfinite(found.loss)}
