"""Declare what checks read: a model on a layout, and the plan of a run.

:class:`atom.titan.preflight.run_plan.RunPlan` is a plan. A layout that a strategy considers
(:class:`atom.titan.checks.candidate.Candidate`) is a model on a layout, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from torch import nn
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.recipe.batches import Batches
from atom.recipe.run import Run
from atom.registry.select import Selection


class LaidOut(Protocol):
    """A model on a layout.

    Attributes:
        training: torchtitan's section, its local batch size resolved.
        parallelism: torchtitan's section, every degree resolved.
        model_config: the architecture's model config, as the architecture describes it.
        architecture: the architecture's parameters, which hints name.
        local_given: whether the run sets ``training.local_batch_size``.
        batches: the sequences of each step.
    """

    @property
    def training(self) -> TrainingConfig: ...
    @property
    def parallelism(self) -> ParallelismConfig: ...
    @property
    def model_config(self) -> Any: ...
    @property
    def architecture(self) -> BaseModel | None: ...
    @property
    def local_given(self) -> bool: ...
    @property
    def batches(self) -> Batches: ...


class Plan(LaidOut, Protocol):
    """The plan of a run.

    Attributes:
        run: the run, with its layout and its initial weights resolved.
        selection: its components.
        folder: the run folder, which may not exist yet.
        kind: the kind of device: ``cpu`` or ``cuda``.
        available: GPUs, or cores of the CPU, of this machine.
        joined: number of ranks that an outer launcher has started; None without one.
        world_size: the number of ranks.
        shapes: shapes of the described model's tensors, by name.
        config: the ``Trainer.Config``, with the kernels in place.
        model: the model of ``config``, on the meta device.
    """

    @property
    def run(self) -> Run: ...
    @property
    def selection(self) -> Selection: ...
    @property
    def folder(self) -> Path: ...
    @property
    def kind(self) -> str: ...
    @property
    def available(self) -> int: ...
    @property
    def joined(self) -> int | None: ...
    @property
    def world_size(self) -> int: ...
    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    @property
    def config(self) -> Any: ...
    @property
    def model(self) -> nn.Module: ...
