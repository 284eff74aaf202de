"""Compute the loss of micro-batches with a trainer's model, without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from atom.titan.compat.pipeline import forward_only

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer, Microbatch


def loss(trainer: AtomTrainer, microbatches: list[Microbatch]) -> torch.Tensor:
    """Return this rank's share of the sum of the losses of one pass.

    It is 0 on a rank without the last pipeline stage. Call it within
    :class:`atom.titan.train.untouched.Untouched`.

    Args:
        trainer: the trainer.
        microbatches: on its device; several under pipeline parallelism.
    """
    prepared = [trainer.post_dataloading_process(*each) for each in microbatches]
    if trainer.parallel_dims.pp_enabled:
        return _pipelined(trainer, prepared)
    ((inputs, labels, arguments),) = prepared
    with trainer.train_context():
        output = trainer.model_parts[0](inputs, **arguments)
        positions = {k: v for k, v in arguments.items() if k == "positions"}
        found, _ = trainer.loss_fn(output, labels, **positions)
    return _plain(found)


def _pipelined(
    trainer: AtomTrainer, prepared: list[tuple[Any, Any, dict[str, Any]]]
) -> torch.Tensor:
    last = trainer.pp_has_last_stage
    losses: list[torch.Tensor] | None = [] if last else None
    with trainer.train_context(), forward_only(trainer.pp_schedule):
        trainer.pp_schedule.eval(
            arg_mbs=[(each[0],) for each in prepared] if trainer.pp_has_first_stage else None,
            kwarg_mbs=[each[2] for each in prepared],
            target_mbs=[each[1] for each in prepared] if last else None,
            losses=losses,
            return_outputs=False,
        )
    if losses is None:
        return torch.zeros(())
    return torch.stack([_plain(each) for each in losses]).sum()


def _plain(found: torch.Tensor) -> torch.Tensor:
    return found.to_local() if isinstance(found, DTensor) else found
