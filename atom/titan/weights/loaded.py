"""Load a run's model, or that of its export, whole and in one process."""

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
from atom.run_dir import saved
from atom.titan import kernels, saved_model
from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.compat import device
from atom.titan.hugging_face import weights as hf_weights
from atom.titan.saved_model import Trained
from atom.titan.weights import merged


@dataclass(frozen=True)
class Loaded:
    """A run with its model.

    Attributes:
        trained: the run.
        model: with its weights, for evaluation.
        step: the step of its checkpoint; None for an export.
    """

    trained: Trained
    model: Any
    step: int | None


def load(folder: Path, *, step: int | None, kind: str, average: str | None = None) -> Loaded:
    """Load a model.

    Args:
        folder: the folder of the run or the export.
        step: the checkpoint's step, for a run; None for the newest.
        kind: the device that torchtitan is set up for, ``cpu`` or ``cuda``.
        average: the callback whose averaged weights to load, for a run; None: the weights.

    Raises:
        UserError: there are no readable weights.
    """
    run = saved_model.trained(folder)
    exported = (folder / hf_folder.CONFIG).is_file()
    for option, value in (("step", step), ("average", average)):
        if exported and value is not None:
            raise UserError(f"--{option} {value} is for the folder of a run; {folder} is an export")
    _use_kernels(run, kind)
    model = _empty(run, kind)
    wrapper = ModelWrapper(model)
    state = wrapper.state_dict()
    found = None
    if exported:
        state = _exported(run, state)
    else:
        found, place = saved.newest(folder, run.run, step)
        source = merged.checkpoint(run, place, average)
        source.check(state)
        source.fill(state)
    wrapper.load_state_dict(state)
    return Loaded(run, model, found)


def _use_kernels(run: Trained, kind: str) -> None:
    """Apply the kernels for this machine's device, not the run's, to the model's config."""
    where = kernels.situation(run.parts.model, run.host, device.describe(kind))

    def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        return kernels.choose({}, run.host, replace(where, unfit=unfit))

    def place(chosen: tuple[Choice, ...], model: Any = None) -> None:
        declared = [choice.declaration for choice in chosen]
        kernels.replace(model or deepcopy(run.parts.model), declared)

    place(kernels.settle(choose, place)[0], run.parts.model)


def _empty(run: Trained, kind: str) -> Any:
    """Return the model with its buffers set and its weights uninitialized."""
    model: Any = saved_model.on_meta(run.parts.model)
    model.to_empty(device=kind)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return model.eval()


def _exported(run: Trained, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` with the values of an export."""
    adapter = run.adapter()
    try:
        problem, notes = hf_weights.check(run.parts, adapter, run.folder)
        if not problem:
            for note in notes:
                print(f"atom: {run.folder}: {note}", file=sys.stderr)
            return hf_reader.load(state, adapter, run.folder, alone=True)
    except (ValueError, hf_reader.NotFiniteError) as error:
        raise UserError(f"{run.folder}: {error}") from None
    raise UserError(f"{run.folder} is of another model: {problem}")
