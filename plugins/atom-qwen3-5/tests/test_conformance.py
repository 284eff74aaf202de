"""The model keeps the promises of an architecture, and is the one that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.testing import conformance, runs
from atom.testing.hugging_face import assert_same_logits

SHAPE: dict[str, Any] = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "n_key_heads": 2,
    "n_value_heads": 4,
    "key_head_dim": 16,
    "value_head_dim": 16,
}

DENSE = SHAPE | {"hidden_dim": 128}
MOE = SHAPE | {"moe_hidden_dim": 32, "shared_hidden_dim": 32, "num_experts": 8, "top_k": 2}

TOLERANCE = 3e-4
"""|difference of logits| to ``transformers``. Of the six compared here five are below 4e-5; one
kind of CPU rounds the linear layers' recurrence so that the sixth is 1.3e-4."""

TestQwen35 = conformance("architecture:qwen3_5", **DENSE)
# Without balancing: Hugging Face's model has no place for the biases that balance experts.
TestQwen35MoE = conformance("architecture:qwen3_5_moe", **MOE, load_balance_coeff=None)


@pytest.mark.slow
def test_sharing_experts_out_changes_nothing() -> None:
    layout = {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 4,
    }
    architecture = {"name": "qwen3_5_moe"} | MOE
    runs.assert_trains_alike(architecture, layout)


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_without_fla")
@pytest.mark.parametrize("tied", [False, True])
def test_dense_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "qwen3_5"} | DENSE | {"tie_embeddings": tied},
        counterpart("qwen3_5_text") | {"intermediate_size": 128, "tie_word_embeddings": tied},
        tmp_path,
        tolerance=TOLERANCE,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_without_fla")
def test_mixture_logits_are_those_of_transformers(tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "qwen3_5_moe"} | MOE,
        counterpart("qwen3_5_moe_text")
        | {
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
        tmp_path,
        tolerance=TOLERANCE,
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
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.5,
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
    }
