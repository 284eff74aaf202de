"""The model keeps the promises of an architecture, and is the one that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.testing import conformance, runs
from atom.testing.hugging_face import assert_same_logits

TINY = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "sliding_window": 24,
    "moe_hidden_dim": 32,
    "num_experts": 8,
    "top_k": 2,
}

# Without balancing: Hugging Face's model has no place for the biases that balance experts.
TestGptOss = conformance("architecture:gpt_oss", **TINY, load_balance_coeff=None)


@pytest.mark.slow
def test_sharing_experts_out_beside_tensors_changes_nothing() -> None:
    architecture = {"name": "gpt_oss"} | TINY
    layout = {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 2,
    }
    runs.assert_trains_alike(architecture, layout)


@pytest.mark.slow
def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    """Sinks, windows shorter than the sequence, YaRN, biases and all."""
    assert_same_logits(
        {"name": "gpt_oss"} | TINY,
        {
            "model_type": "gpt_oss",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 24,
            "intermediate_size": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "tie_word_embeddings": False,
        },
        tmp_path,
    )
