"""Configs of optimizers, as a run has them."""

from __future__ import annotations

from typing import Any

from atom.plugin import Optimizer
from atom.recipe import optimizers as recipe
from atom.recipe.run import Run, parse
from atom.registry.host import Host
from atom.registry.opening import Opener
from atom.titan.optim import optimizer
from atom.titan.optim.kept_optimizers import KeptOptimizers


def optimizer_config(name: str, *, device: str = "cpu", **section: Any) -> KeptOptimizers.Config:
    """Return the config of a run's optimizer, given its section."""
    whole = recipe.Optimizer.model_validate({"name": name, **section})
    chosen = Opener(Host.load()).of_section(Optimizer, whole, "optimizer")
    return optimizer.config(chosen, whole, device=device, parameter_dtype="float32")


def declared(name: str) -> Optimizer:
    """Return the declaration of an optimizer."""
    declaration = Host.load().find("optimizer", name).declaration
    assert isinstance(declaration, Optimizer)
    return declaration


def section_run(**sections: Any) -> Run:
    """Return a run with some sections, complete."""
    names = {name: {"name": "x"} for name in ("architecture", "tokenizer", "dataset")}
    others = {"parallelism": {"name": "x"}, "optimizer": {"name": "x"}}
    return parse({**names, **others, **sections})
