"""Describe the course of validation sets in rows of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from atom.io.numbers import decimal, sparkline
from atom.run_dir.metrics import StepMetrics, by_set


def course(
    rows: Iterable[StepMetrics], columns: int, *, ascii_only: bool
) -> Iterator[tuple[str, str, str]]:
    """Yield for each set its name, its first loss and last result, and its losses as a sparkline.

    Args:
        rows: the rows of a run.
        columns: the width of the sparkline.
        ascii_only: use ASCII characters only.
    """
    for name, points in by_set(rows).items():
        losses = [found.loss for _, found in points]
        words = f"{decimal(losses[0], 4)} → {points[-1][1]}"
        yield name, words, sparkline(losses, columns, ascii_only=ascii_only)
