"""Which kernels a run would have, without the run: nothing is prepared, started or written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

from atom.kernels.choose import Choice, Situation
from atom.kernels.operations import OPERATIONS
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.titan.boot import boot

_VOCABULARY = 1 << 15
"""Stands in for the vocabulary's size, which only a prepared tokenizer knows; no kernel is chosen
or refused for it."""


def explain(
    run: Run, selection: Selection, host: Host, supposed: Mapping[str, str | None]
) -> tuple[tuple[Choice, ...], Situation]:
    """Return the choice for each operation of ``run``, and what it was made for.

    Args:
        run: as composed; its device may be a description of one that is not here.
        selection: its components.
        host: the plugins.
        supposed: packages to take for installed, with a version or None for any.

    Raises:
        UserError: no kernel fits, or the device or the model cannot be.
    """
    boot("cpu")
    from atom.titan import kernels, trainer_config, translate
    from atom.titan.planning import planning

    described = planning.described(run)
    training = translate.training(run.training, described.kind)
    parts = trainer_config.model_parts(selection, _VOCABULARY, training.seq_len)
    where = kernels.situation(
        parts.model,
        host,
        described,
        run=run,
        training=training,
        tensor_parallel=_known(run.parallelism.tensor_parallel_degree),
        context_parallel=_known(run.parallelism.context_parallel_degree),
        expert_parallel=_known(run.parallelism.expert_parallel_degree),
        supposed=supposed,
    )

    def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        nonlocal where
        where = replace(where, unfit=unfit)
        return kernels.choose(run.kernels, host, where, loss_chunks=run.loss.num_chunks)

    def place(chosen: tuple[Choice, ...]) -> None:
        for choice in filter(_is_of_model, chosen):
            # A package may be one that is only supposed to be here.
            with suppress(ImportError):
                kernels.replace(deepcopy(parts.model), [choice.declaration])

    return kernels.settle(choose, place)[0], where


def _is_of_model(choice: Choice) -> bool:
    """Return whether a kernel replaces nodes of a model."""
    known = OPERATIONS.get(choice.operation)
    return (
        choice.declaration.override is not None
        and known is not None
        and known.place.startswith("torchtitan.models.")
    )


def _known(degree: int | None) -> int:
    """Return a degree as far as it is known; -1 is what is left, and more than one rank."""
    return 2 if degree == -1 else degree or 1
