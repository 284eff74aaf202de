"""Each function is a strategy with one fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torchtitan.config import ParallelismConfig

from atom.plugin import ParallelismContext, Strategy
from atom.testing.partners.model import parallelism as twin

__all__ = ["crashes", "forgets_gradients", "other_degrees", "too_few_ranks", "twin"]


def other_degrees(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    """The ranks that were to share the data replicate it."""
    changed = replace(
        config,
        data_parallel_shard_degree=1,
        data_parallel_replicate_degree=config.data_parallel_shard_degree,
    )
    return twin(changed, context)


def too_few_ranks(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    """Wherever it is, it claims a pipeline of two stages."""
    return twin(replace(config, pipeline_parallel_degree=2), context)


def crashes(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    nodes = {1: 1, 2: 1, 8: 1, 16: 2}[context.world_size]
    return twin(replace(config, data_parallel_replicate_degree=nodes), context)


def forgets_gradients(config: ParallelismConfig, _context: ParallelismContext) -> Strategy:
    """Every rank trains by itself."""

    def parallelize(model: Any, **_arguments: Any) -> Any:
        return model

    return Strategy(parallelism=config, parallelize_fn=parallelize)
