"""Average the weights of checkpoints of one architecture, one tensor at a time.

Memory holds a few copies of the largest tensor, whatever the size of the model and the number of
checkpoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex

from atom.errors import UserError
from atom.io import new_folder
from atom.run_dir import averaging, inputs, saved
from atom.run_dir.averaging import Source
from atom.run_dir.folder import RUN_FILE
from atom.titan import saved_model
from atom.titan.checkpoint.dcp import AtomicWriter
from atom.titan.saved_model import Checkpoint

_PIECE = 1 << 20
"""Numbers that are converted to float64 at once."""


@dataclass(frozen=True)
class Averaged:
    """The result.

    Attributes:
        step: the step of its checkpoint, the largest one of the sources.
        size: its weights in bytes.
    """

    step: int
    size: int


def average(sources: Sequence[Source], out: Path) -> Averaged:
    """Write a run folder with one checkpoint, the weighted mean of ``sources``.

    Args:
        sources: from :func:`atom.run_dir.averaging.choose`.
        out: the folder to write; new or empty.

    Raises:
        UserError: a checkpoint is damaged or of another model; nothing has been written.
    """
    run = saved_model.trained(sources[0].folder)
    expected = saved_model.on_meta(run.parts.model).state_dict()
    mean = _Mean(sources, expected)
    for source in sources:
        saved.verify(source.place)
    step = max(source.step for source in sources)
    with new_folder.filled(out) as partial:
        averaging.describe(sources, step, partial)
        writer = AtomicWriter(
            partial / saved.folder(run.run),
            step,
            model_only=True,
            companions=(partial / RUN_FILE, partial / inputs.FILE_NAME),
            split=True,
        )
        _save(mean, writer)
    return Averaged(step, sum(each.numel() * each.itemsize for each in mean.empty.values()))


def _save(mean: _Mean, writer: AtomicWriter) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(mean.empty, storage_writer=writer, planner=_Planner(mean), no_dist=True)
    except CheckpointException as error:
        # A full disk, or a checkpoint that cannot be read.
        raise next(cause for cause, _ in error.failures.values()) from error


class _Planner(DefaultSavePlanner):
    """A planner that computes a tensor when it is written."""

    def __init__(self, mean: _Mean) -> None:
        super().__init__()
        self._mean = mean

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._mean.of(index.fqn)


class _Mean:
    """The weighted mean of checkpoints.

    Args:
        sources: the checkpoints.
        expected: the weights of the model by name, without values.

    Attributes:
        empty: name -> tensor of the mean, without values.

    Raises:
        UserError: a checkpoint cannot be read or is of another model; so does :meth:`of`.
    """

    def __init__(self, sources: Sequence[Source], expected: dict[str, torch.Tensor]) -> None:
        # A power of two, so that the division is exact: no product of a weight and a number of
        # float32 is too large for float64.
        largest = math.frexp(max(source.weight for source in sources))[1]
        self._parts = [
            (Checkpoint(source.place, source.average), math.ldexp(source.weight, -largest))
            for source in sources
        ]
        self._total = math.fsum(weight for _, weight in self._parts)
        for part, _ in self._parts:
            part.check(expected)
        first = self._parts[0][0]
        self.empty = {
            name: torch.empty(tensor.shape, dtype=_dtype(first, name), device="meta")
            for name, tensor in expected.items()
        }
        for part, _ in self._parts[1:]:
            for name, tensor in self.empty.items():
                if _dtype(part, name) != tensor.dtype:
                    raise UserError(
                        f"the weights of {part.place} have another dtype than those of "
                        f"{first.place}: {name} is {_named(_dtype(part, name))} there and "
                        f"{_named(tensor.dtype)} here",
                        valid="checkpoints with the same training.dtype",
                    )

    def of(self, name: str) -> torch.Tensor:
        """Return the mean of one tensor: its sum in float64, divided and rounded to its dtype."""
        dtype = self.empty[name].dtype
        if not dtype.is_floating_point:
            return self._same(name)
        total = torch.zeros(self.empty[name].shape, dtype=torch.float64)
        for part, weight in self._parts:
            if weight and not _add(total, part.read(name), weight):
                raise UserError(f"the checkpoint {part.place} has NaN or infinity in {name}")
        return total.div_(self._total).to(dtype)

    def _same(self, name: str) -> torch.Tensor:
        """Return a tensor of whole numbers or truth values, which has no mean."""
        first = self._parts[0][0]
        values = first.read(name)
        for part, _ in self._parts[1:]:
            if not torch.equal(part.read(name), values):
                raise UserError(
                    f"{name} has no mean, as it is {_named(values.dtype)}, and {part.place} has "
                    f"other values than {first.place}"
                )
        return values


def _add(total: torch.Tensor, values: torch.Tensor, weight: float) -> bool:
    """Add ``weight * values`` to ``total``; return whether all values are finite."""
    finite = True
    # In pieces: only these have a copy in float64.
    for sums, piece in zip(
        total.view(-1).split(_PIECE), values.reshape(-1).split(_PIECE), strict=True
    ):
        added = piece.double()
        finite &= bool(added.isfinite().all())
        sums.add_(added.mul_(weight))
    return finite


def _dtype(part: Checkpoint, name: str) -> torch.dtype:
    return part.tensors[name].properties.dtype


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
