"""The model keeps the promises of an architecture, and is the one that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.testing import conformance, runs
from atom.testing.hugging_face import assert_same_logits

TINY = {
    "dim": 64,
    "n_layers": 4,
    "n_dense_layers": 1,
    "n_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "dense_hidden_dim": 128,
    "moe_hidden_dim": 32,
    "num_experts": 8,
    "num_shared_experts": 1,
    "top_k": 2,
    "num_expert_groups": 4,
    "num_limited_groups": 2,
    "route_scale": 2.5,
}

TestDeepSeekV3 = conformance("architecture:deepseek_v3", **TINY)


@pytest.mark.slow
def test_sharing_experts_out_beside_tensors_changes_nothing() -> None:
    architecture = {"name": "deepseek_v3"} | TINY
    layout = {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 2,
    }
    runs.assert_trains_alike(architecture, layout)


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [True, False])
def test_logits_are_those_of_transformers(compressed: bool, tmp_path: Path) -> None:
    q_lora_rank = 32 if compressed else None
    assert_same_logits(
        {"name": "deepseek_v3"} | TINY | {"q_lora_rank": q_lora_rank},
        {
            "model_type": "deepseek_v3",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": q_lora_rank,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "intermediate_size": 128,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 16384,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "rope_interleave": True,
            "tie_word_embeddings": False,
        },
        tmp_path,
    )
