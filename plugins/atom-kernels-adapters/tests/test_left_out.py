"""Why there is no DeepEP: once this fails, there can be."""

from __future__ import annotations

from dataclasses import fields

import pytest
from torchtitan.config.override import derive
from torchtitan.models.common import token_dispatcher


def test_an_override_cannot_know_how_large_deepeps_buffers_must_be() -> None:
    node = token_dispatcher.AllToAllTokenDispatcher.Config(num_experts=8, top_k=2)
    assert {field.name for field in fields(node)} == {"num_experts", "top_k"}
    found = derive(node, token_dispatcher.DeepEPTokenDispatcher.Config)
    with pytest.raises(ValueError, match="requires num_max_tokens_per_rank"):
        found.build()
