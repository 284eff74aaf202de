"""Parallelize a decoder with torchtitan's generic function."""

from __future__ import annotations

from torchtitan.config import ParallelismConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.llama3.parallelize import parallelize_llama

from atom.plugin import ParallelismContext, Strategy


def mesh(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    """Return the strategy for ``config``'s degrees.

    ``parallelize_llama`` applies TP, CP, activation checkpointing, compilation and FSDP to any
    torchtitan ``Decoder`` with a config that declares its sharding; other architectures provide
    their own function.
    """
    return Strategy(
        parallelism=config,
        parallelize_fn=context.parts.parallelize_fn or parallelize_llama,
        pipelining_fn=context.parts.pipelining_fn or pipeline_llm,
    )
