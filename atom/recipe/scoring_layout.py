"""Read the layout of ranks that score a trained model: ``--layout`` of ``atom eval``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from atom.errors import UserError, nearest

if TYPE_CHECKING:
    from atom.recipe.run import Run

OF_THE_RUN = "run"
_UNSCORED = {"pp": "stages of a pipeline", "cp": "parts of a sequence"}
"""Dimensions that no layout of scoring has, and what they divide a model or text into."""


@dataclass(frozen=True)
class ScoringLayout:
    """Degrees under the names of the screen; without one, a single process scores the model.

    Attributes:
        dp_replicate: copies of the sharded model.
        dp_shard: ranks that parameters are sharded over (FSDP).
        tp: ranks that compute each layer together.
        ep: ranks of dp_shard x tp that whole experts are distributed over.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    ep: int = 1

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.dp_replicate * self.dp_shard * self.tp

    @property
    def degrees(self) -> dict[str, int]:
        """The degrees under the names of the section ``parallelism``."""
        return {_KEYS[name]: degree for name, degree in asdict(self).items()}


_KEYS = {
    "dp_replicate": "data_parallel_replicate_degree",
    "dp_shard": "data_parallel_shard_degree",
    "tp": "tensor_parallel_degree",
    "ep": "expert_parallel_degree",
    "pp": "pipeline_parallel_degree",
    "cp": "context_parallel_degree",
}
_VALID = "DEGREE=RANKS,… of dp_replicate, dp_shard, tp and ep; or run, the layout of the run"


def parse(text: str, run: Run | None, key: str) -> ScoringLayout:
    """Return the layout that ``text`` names.

    Args:
        text: ``run``, or degrees such as ``dp_shard=2,tp=2``.
        run: the run whose model is scored; None for a folder without one.
        key: the key or option of the text, for errors.

    Raises:
        UserError: there is no such layout, or models cannot be scored on it.
    """
    if run is None:
        raise UserError(
            "is for the folder of a run or its export: transformers computes this one in one "
            "process",
            key=key,
            value=text,
        )
    degrees = _of_run(run) if text == OF_THE_RUN else _degrees(text, key)
    for name, parts in _UNSCORED.items():
        if degrees.pop(name, 1) > 1:
            raise UserError(
                f"{parts} ({name}) cannot be scored",
                valid="other degrees, such as dp_shard=2,tp=2",
                key=key,
                value=text,
            )
    layout = ScoringLayout(**degrees)
    shared = layout.dp_shard * layout.tp
    if shared % layout.ep:
        raise UserError(
            f"ep={layout.ep} does not divide the {shared} ranks of dp_shard x tp",
            key=key,
            value=text,
        )
    return layout


def _of_run(run: Run) -> dict[str, int]:
    """Return the degrees of a run; before it is resolved, those that it sets."""
    set_ = {key: getattr(run.parallelism, key) or 1 for key in _KEYS.values()}
    found = set_ | (dict(run.resolved.degrees) if run.resolved is not None else {})
    return {name: max(found[key], 1) for name, key in _KEYS.items()}


def _degrees(text: str, key: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in text.split(","):
        name, _, number = (part.strip() for part in word.partition("="))
        if name not in _KEYS:
            hint = nearest(name, [each.name for each in fields(ScoringLayout)])
            raise UserError(f"{word.strip()!r} is no degree; {hint}", key=key, value=text)
        if name in found:
            raise UserError(f"{name} is given twice", key=key, value=text)
        if not number.isascii() or not number.isdecimal() or not 1 <= int(number) <= 10**6:
            raise UserError(
                f"the ranks of {name} must be a whole number from 1",
                valid=_VALID,
                key=key,
                value=text,
            )
        found[name] = int(number)
    if math.prod(found.values()) == 1:
        raise UserError(
            "is one rank, which needs no layout", valid="leave it out", key=key, value=text
        )
    return found
