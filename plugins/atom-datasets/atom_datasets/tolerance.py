"""Stop a run when too many documents are bad."""

from __future__ import annotations

from atom.errors import UserError


class Tolerance:
    """A counter of this process's bad documents; each counts once, however often it is read.

    Args:
        fraction: maximum fraction of ``total``; 0: none is tolerated.
        total: number of documents.
    """

    def __init__(self, fraction: float, total: int) -> None:
        self._fraction = fraction
        self._total = total
        self._bad: set[str] = set()

    def use(self, id: str, problem: str) -> None:
        """Count one more bad document.

        Raises:
            UserError: there are too many.
        """
        self._bad.add(id)
        refuse(problem, len(self._bad), self._total, self._fraction)


def refuse(problem: str, bad: int, total: int, fraction: float) -> None:
    """Raise UserError if ``bad`` documents of ``total`` exceed ``fraction``."""
    if bad <= fraction * total:
        return
    if fraction == 0:
        words = f"{problem}; valid: readable text, or a dataset.max_bad_fraction above 0"
        raise UserError(words, key="dataset.path")
    raise UserError(
        f"{bad:,} of {total:,} documents cannot be read, more than that fraction; one of them: "
        f"{problem}",
        key="dataset.max_bad_fraction",
        value=fraction,
    )
