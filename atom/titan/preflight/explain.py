"""Explain which kernels a run would use; prepare, start and write nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace

from atom.kernels.choose import Choice, Situation
from atom.kernels.operations import OPERATIONS
from atom.plugin import Optimizer
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.titan.boot import boot

_VOCABULARY = 1 << 15
"""Stands in for the vocabulary size, which only a prepared tokenizer knows.

No kernel is chosen or refused because of it.
"""


def explain(
    run: Run, selection: Selection, host: Host, supposed: Mapping[str, str | None]
) -> tuple[tuple[Choice, ...], Situation]:
    """Return the choice for each operation of ``run``, and the situation that it is made for.

    Args:
        run: as composed; its device may be the description of another machine's.
        selection: its components.
        host: the plugins.
        supposed: packages to treat as installed, with a version or None for any.

    Raises:
        UserError: no kernel fits, or the device or the model is invalid.
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
        optimizer=selection[Optimizer].declaration,
        tensor_parallel=_known(run.parallelism.tensor_parallel_degree),
        context_parallel=_known(run.parallelism.context_parallel_degree),
        expert_parallel=_known(run.parallelism.expert_parallel_degree),
        supposed=supposed,
    )

    def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        nonlocal where
        where = replace(where, unfit={**where.unfit, **unfit})
        return kernels.choose(run.kernels, host, where, loss_chunks=run.loss.num_chunks)

    def place(chosen: tuple[Choice, ...]) -> None:
        for choice in filter(_is_of_model, chosen):
            # The package may be supposed only.
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
    """Return a degree if known; -1 (the remaining ranks) counts as more than one rank."""
    return 2 if degree == -1 else degree or 1
