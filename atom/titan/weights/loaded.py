"""Load a run's model, or that of its export: whole, or this rank's shards of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.checkpointer.base import ModelWrapper

from atom.errors import UserError
from atom.kernels.choose import Choice
from atom.recipe.scoring_layout import ScoringLayout
from atom.run_dir import saved
from atom.titan import kernels, saved_model
from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.compat import device
from atom.titan.hugging_face import weights as hf_weights
from atom.titan.saved_model import Trained
from atom.titan.weights import laid_out, merged
from atom.titan.weights.laid_out import Ranks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A run with its model.

    Attributes:
        trained: the run.
        model: with its weights, for evaluation.
        step: the step of its checkpoint; None for an export.
        ranks: the ranks that share the model; None if this process has it alone.
    """

    trained: Trained
    model: Any
    step: int | None
    ranks: Ranks | None = None

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.ranks is None or self.ranks.first


ALONE = ScoringLayout()


def load(
    folder: Path,
    *,
    step: int | None,
    kind: str,
    average: str | None = None,
    dtype: str = "float32",
    layout: ScoringLayout = ALONE,
) -> Loaded:
    """Load a model; on several ranks, each calls this.

    Args:
        folder: the folder of the run or the export.
        step: the checkpoint's step, for a run; None for the newest.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to load, for a run; None: the weights.
        dtype: precision of the weights in the forward pass.
        layout: the layout of the ranks that share the model.

    Raises:
        UserError: there are no readable weights.
    """
    run = saved_model.trained(folder)
    exported = (folder / hf_folder.CONFIG).is_file()
    for option, value in (("step", step), ("average", average)):
        if exported and value is not None:
            raise UserError(f"--{option} {value} is for the folder of a run; {folder} is an export")
    ranks = laid_out.prepare(run, layout, kind) if layout.ranks > 1 else None
    _use_kernels(run, kind, layout)
    model: Any = saved_model.on_meta(run.parts.model)
    if ranks is not None:
        model = laid_out.parallelized(model, run, ranks, layout, kind=kind, dtype=dtype)
    _allocate(model, kind)
    wrapper = ModelWrapper(model)
    state = wrapper.state_dict()
    found = None
    if exported:
        state = _exported(run, state, alone=ranks is None)
    else:
        found, place = saved.newest(folder, run.run, step)
        source = merged.checkpoint(run, place, average)
        source.check(state)
        source.fill(state)
    wrapper.load_state_dict(state)
    if ranks is None:
        # As under FSDP: parameters have the dtype, buffers keep theirs.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
    return Loaded(run, model, found, ranks)


def _use_kernels(run: Trained, kind: str, layout: ScoringLayout) -> None:
    """Apply the kernels for this machine's device, not the run's, to the model's config."""
    where = kernels.situation(
        run.parts.model,
        run.host,
        device.describe(kind),
        tensor_parallel=layout.tp,
        expert_parallel=layout.ep,
    )

    def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        return kernels.choose({}, run.host, replace(where, unfit=unfit))

    def place(chosen: tuple[Choice, ...], model: Any = None) -> None:
        declared = [choice.declaration for choice in chosen]
        kernels.replace(model or deepcopy(run.parts.model), declared)

    place(kernels.settle(choose, place)[0], run.parts.model)


def _allocate(model: Any, kind: str) -> None:
    """Give a model on the meta device memory, and its buffers their values."""
    model.to_empty(device=kind)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    model.eval()


def _exported(
    run: Trained, state: dict[str, torch.Tensor], *, alone: bool
) -> dict[str, torch.Tensor]:
    """Return ``state`` with the values of an export."""
    adapter = run.adapter()
    try:
        problem, notes = hf_weights.check(run.parts, adapter, run.folder)
        if not problem:
            for note in notes:
                print(f"atom: {run.folder}: {note}", file=sys.stderr)
            return hf_reader.load(state, adapter, run.folder, alone=alone)
    except (ValueError, hf_reader.NotFiniteError) as error:
        raise UserError(f"{run.folder}: {error}") from None
    raise UserError(f"{run.folder} is of another model: {problem}")
