"""Assemble configs as torchtitan's trainer does, and say in one sentence what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.titan import kernels
from atom.titan.trainer_config import set_sharding


def assemble(config: Any) -> None:
    """Complete a ``Trainer.Config`` of ATOM's in place: sizes, sharding, kernels.

    Raises:
        UserError: parts of it are incompatible.
        UnfitError: a kernel does not compute its operation in this run.
    """
    with refused():
        config.model_spec.model.update_from_config(config=config)
        config.replaced |= kernels.apply(config, config.overrides)


def sharded(model: Any, training: TrainingConfig, parallelism: ParallelismConfig) -> Any:
    """Return a copy of ``model`` with the sharding that it declares for a layout.

    Raises:
        UserError: the architecture does not support the layout; the message is the architecture's.
    """
    copied = deepcopy(model)
    with refused():
        set_sharding(copied, training, parallelism)
    return copied


@contextmanager
def refused() -> Iterator[None]:
    """Convert configuration errors of torchtitan and architectures into a :class:`UserError`."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise UserError(" ".join(str(error).split()).rstrip(".")) from None
