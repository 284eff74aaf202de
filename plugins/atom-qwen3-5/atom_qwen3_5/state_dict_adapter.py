"""Names of Qwen3.5's weights, here and at Hugging Face, for a model of text alone.

``transformers`` writes the experts of a text model one by one, as those of Qwen3, though published
files hold each layer's as one.

There, queries, keys and values of a linear layer are one weight: it is made when all three are
given.
"""

from __future__ import annotations

from typing import Any

from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter
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


class _Experts(Qwen3StateDictAdapter):
    """torchtitan's for the experts of Qwen3, whose names these have."""

    def _validate_hf_rope_config(self, expected_rope_cls: type) -> None:
        """Experts know no positions."""


class Qwen35MixtureStateDictAdapter(Qwen35TextStateDictAdapter):
    """That of a mixture, with the names of ``Qwen3_5MoeForCausalLM``."""

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
    """Return the weights whose names hold ``part``, and the others."""
    chosen = {name: weight for name, weight in weights.items() if part in name}
    return chosen, {name: weight for name, weight in weights.items() if name not in chosen}
