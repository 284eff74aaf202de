"""Assemble what the ranks will build, with the kernels of the run in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atom.kernels.choose import Choice
from atom.plugin import ModelParts
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.titan import kernels
from atom.titan.checks import engine, output_layers
from atom.titan.lora import adapt
from atom.titan.saved_model import on_meta
from atom.titan.trainer_config import trainer_config


@dataclass(frozen=True)
class Assembly:
    """A run and what its ranks build.

    Attributes:
        run: the run, as ``run.yaml`` holds it.
        config: its ``Trainer.Config``, with sharding and kernels in place.
        model: the model of ``config``, on the meta device.
    """

    run: Run
    config: Any
    model: nn.Module


def assemble(
    run: Run,
    chosen: Iterable[Choice],
    selection: Selection,
    host: Host,
    folder: Path,
    parts: ModelParts,
) -> Assembly:
    """Assemble ``run`` with the kernels ``chosen``.

    Args:
        run: a run with ``resolved`` filled in, except for the kernels.
        chosen: its kernels.
        selection: its components.
        host: the plugins.
        folder: the run folder, which may not exist yet.
        parts: the model's, which the config then owns.

    Raises:
        UserError: parts of the config are incompatible.
        UnfitError: a kernel does not compute its operation in this run.
    """
    assert run.resolved is not None
    chosen = tuple(chosen)
    settled = {
        "kernels": {choice.operation: choice.name for choice in chosen},
        "kernels_rejected": {
            choice.operation: dict(choice.rejected) for choice in chosen if choice.rejected
        },
        "kernels_not_tried": {
            choice.operation: dict(choice.passed_over) for choice in chosen if choice.passed_over
        },
    }
    resolved = run.resolved.model_copy(update=settled)
    section = run.run.model_copy(update={"dir": folder})
    run = run.model_copy(update={"run": section, "resolved": resolved})
    adapters = adapt.names(parts.model) if run.lora.rank else frozenset()
    config = trainer_config(run, selection, host, folder, parts)
    engine.assemble(config)
    model = on_meta(config.model_spec.model)
    output_layers.check_fused(config, model)
    if lost := adapt.left_out(model, adapters):
        raise kernels.UnfitError(*lost)
    partial = {
        operation: f"{number} of {total}"
        for operation, (number, total) in config.replaced.items()
        if number < total
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    resolved = resolved.model_copy(update={"kernels_partial": partial, "parameters": parameters})
    return Assembly(run.model_copy(update={"resolved": resolved}), config, model)
