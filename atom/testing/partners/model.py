"""Provide the small models of :mod:`atom.titan.contracts.small_models` as components of a plugin,
with torchtitan's parallelize functions."""

from __future__ import annotations

from torchtitan.config import ParallelismConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.llama3.parallelize import parallelize_llama
from torchtitan.models.qwen3.parallelize import parallelize_qwen3

from atom.plugin import ArchitectureContext, ModelParts, ParallelismContext, Strategy
from atom.titan.contracts.small_models import llama_model, qwen_model


def llama(_config: None, context: ArchitectureContext) -> ModelParts:
    return ModelParts(model=llama_model(vocab_size=context.vocab_size))


def qwen(_config: None, context: ArchitectureContext) -> ModelParts:
    model = qwen_model(vocab_size=context.vocab_size)
    return ModelParts(model=model, parallelize_fn=parallelize_qwen3)


def parallelism(config: ParallelismConfig, context: ParallelismContext) -> Strategy:
    return Strategy(
        parallelism=config,
        parallelize_fn=context.parts.parallelize_fn or parallelize_llama,
        pipelining_fn=context.parts.pipelining_fn or pipeline_llm,
    )
