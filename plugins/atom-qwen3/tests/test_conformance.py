"""The models keep the promises of an architecture, and are those that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.testing import conformance, runs
from atom.testing.hugging_face import assert_same_logits

SHAPE = {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
DENSE = SHAPE | {"hidden_dim": 128}
MOE = SHAPE | {"moe_hidden_dim": 32, "num_experts": 8, "top_k": 2}

TestQwen3 = conformance("architecture:qwen3", **DENSE)
# Without balancing: Hugging Face's model has no place for the biases that balance experts.
TestQwen3MoE = conformance("architecture:qwen3_moe", **MOE, load_balance_coeff=None)

EXPERTS_SHARED_OUT: dict[str, dict[str, Any]] = {
    "ep-cp": {
        "data_parallel_shard_degree": 1,
        "context_parallel_degree": 2,
        "expert_parallel_degree": 2,
    },
    "ep-tp": {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 4,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", EXPERTS_SHARED_OUT)
def test_sharing_experts_out_changes_nothing(layout: str) -> None:
    architecture = {"name": "qwen3_moe"} | MOE
    runs.assert_trains_alike(architecture, EXPERTS_SHARED_OUT[layout])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_dense_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "qwen3"} | DENSE | {"tie_embeddings": tied},
        counterpart("qwen3") | {"intermediate_size": 128, "tie_word_embeddings": tied},
        tmp_path,
    )


@pytest.mark.slow
def test_mixture_logits_are_those_of_transformers(tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "qwen3_moe"} | MOE,
        counterpart("qwen3_moe")
        | {
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
        tmp_path,
    )


def counterpart(model_type: str) -> dict[str, Any]:
    """Return ``SHAPE`` in Hugging Face's names."""
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }
