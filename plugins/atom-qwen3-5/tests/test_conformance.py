"""The model keeps the promises of an architecture, and is the one that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atom.testing import conformance
from atom.testing.hugging_face import assert_same_logits

SHAPE: dict[str, Any] = {
    "dim": 64,
    "n_layers": 4,
    "hidden_dim": 128,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "n_key_heads": 2,
    "n_value_heads": 4,
    "key_head_dim": 16,
    "value_head_dim": 16,
}

TestQwen35 = conformance("architecture:qwen3_5", **SHAPE).having(
    unsupported={"cp": "a linear layer reads the sequence from its beginning"}
)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "qwen3_5"} | SHAPE | {"tie_embeddings": tied},
        {
            "model_type": "qwen3_5_text",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "intermediate_size": 128,
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
            "tie_word_embeddings": tied,
        },
        tmp_path,
    )
