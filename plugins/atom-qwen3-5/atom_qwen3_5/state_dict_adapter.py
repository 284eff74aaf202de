"""Map Qwen3.5's weight names to and from Hugging Face's, for text-only models.

``transformers`` writes the experts of a text model one by one, like Qwen3's, though published files
store each layer's experts as one weight.

Queries, keys and values of a linear layer are one weight there: it is made when all three are
given.
"""

from __future__ import annotations

from typing import Any

from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
from torchtitan.models.qwen3_5.state_dict_adapter import Qwen35StateDictAdapter

PREFIX, THEIR_PREFIX = "model.", "model.language_model."
"""Prefixes of the text model's names, and of those of the vision model, which torchtitan uses."""

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


class Qwen35TextStateDictAdapter(Qwen35StateDictAdapter):
    """torchtitan's adapter, with the names of ``Qwen3_5ForCausalLM``."""

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


class _Experts(Qwen3StateDictAdapter):
    """torchtitan's adapter of Qwen3, which has the same names of experts."""

    def _validate_hf_rope_config(self, expected_rope_cls: type) -> None:
        """Do nothing: experts have no positions."""


class Qwen35MixtureStateDictAdapter(Qwen35TextStateDictAdapter):
    """The adapter of a mixture, with the names of ``Qwen3_5MoeForCausalLM``."""

    def __init__(self, model_config: Any, hf_assets_path: str | None) -> None:
        super().__init__(model_config, hf_assets_path)
        self._experts = _Experts(model_config, hf_assets_path)

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        experts, others = _split(state_dict, ".routed_experts.inner_experts.")
        found: dict[str, Any] = super().to_hf(others) | self._experts.to_hf(experts)
        return found

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        experts, others = _split(hf_state_dict, ".mlp.experts.")
        found: dict[str, Any] = super().from_hf(others) | self._experts.from_hf(experts)
        return found


def _split(weights: dict[str, Any], part: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights with ``part`` in their names, and the others."""
    chosen = {name: weight for name, weight in weights.items() if part in name}
    return chosen, {name: weight for name, weight in weights.items() if name not in chosen}
