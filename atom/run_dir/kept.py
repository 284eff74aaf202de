"""Choose the checkpoints that a run keeps."""

from __future__ import annotations

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

    def _losses(self, steps: list[int], run: Path) -> dict[int, float]:
        if self.best_of is None:
            return metrics.mean_losses(run, steps)
        found = metrics.set_losses(run, self.best_of)
        return {step: found[step] for step in steps if step in found}
