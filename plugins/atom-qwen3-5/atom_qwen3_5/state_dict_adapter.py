"""Names of Qwen3.5's weights, here and at Hugging Face, for a model of text alone.

There, queries, keys and values of a linear layer are one weight: it is made when all three are
given.
"""

from __future__ import annotations

from typing import Any

from torchtitan.models.qwen3_5.state_dict_adapter import Qwen35StateDictAdapter

PREFIX, THEIR_PREFIX = "model.", "model.language_model."
"""Of a text model's names, and of those of the one with vision, which torchtitan knows."""

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


class Qwen35TextStateDictAdapter(Qwen35StateDictAdapter):
    """torchtitan's, with the names of ``Qwen3_5ForCausalLM``."""

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        found = super().to_hf(state_dict)
        return {name.replace(THEIR_PREFIX, PREFIX, 1): value for name, value in found.items()}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        given = dict(hf_state_dict)
        if OUTPUT not in given:
            given[OUTPUT] = given[EMBEDDING]
        found: dict[str, Any] = super().from_hf(
            {
                THEIR_PREFIX + name.removeprefix(PREFIX) if name != OUTPUT else name: value
                for name, value in given.items()
            }
        )
        return found
