"""Llama 3 keeps the promises of an architecture, with and without tied embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.testing import conformance
from atom.testing.hugging_face import assert_same_logits

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32}

TestLlama3 = conformance("architecture:llama3", **SIZES, rope_theta=10_000.0).having(
    parameter_count=131_392
)
TestTied = conformance("architecture:llama3", **SIZES, tie_embeddings=True)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "llama3"} | SIZES | {"tie_embeddings": tied},
        {
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 192,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": tied,
        },
        tmp_path,
    )
