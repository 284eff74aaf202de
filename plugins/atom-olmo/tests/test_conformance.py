"""The model keeps the promises of an architecture, and is the one that ``transformers`` has."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.testing import conformance
from atom.testing.hugging_face import assert_same_logits

TINY = {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128}

TestOlmo2 = conformance("architecture:olmo2", **TINY, n_kv_heads=2)
TestTied = conformance("architecture:olmo2", **TINY, n_kv_heads=2, tie_embeddings=True)


@pytest.mark.slow
@pytest.mark.parametrize(("kv_heads", "tied"), [(4, False), (2, True), (1, False)])
def test_logits_are_those_of_transformers(kv_heads: int, tied: bool, tmp_path: Path) -> None:
    assert_same_logits(
        {"name": "olmo2"} | TINY | {"n_kv_heads": kv_heads, "tie_embeddings": tied},
        {
            "model_type": "olmo2",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 128,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            "tie_word_embeddings": tied,
        },
        tmp_path,
    )
