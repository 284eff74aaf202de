"""Map OLMo 2's weight names to and from Hugging Face's. Shapes and orders are the same."""

from __future__ import annotations

import re
from typing import Any

from torchtitan.protocols.state_dict_adapter import StateDictAdapter

HUGGING_FACE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.{}.attention.qkv_linear.wq.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.qkv_linear.wk.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.qkv_linear.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.q_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attention.k_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attention_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.feed_forward.w1.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "model.layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.ffn_norm.weight": "model.layers.{}.post_feedforward_layernorm.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
EMBEDDING, OUTPUT = "tok_embeddings.weight", "lm_head.weight"
OURS = {theirs: ours for ours, theirs in HUGGING_FACE.items()}


class Olmo2StateDictAdapter(StateDictAdapter):
    """An adapter that renames weights; an unknown weight raises ``KeyError``.

    With tied embeddings, Hugging Face's files have the embedding alone.
    """

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {
            _renamed(name, HUGGING_FACE): weight
            for name, weight in state_dict.items()
            if not (self._tied and name == OUTPUT)
        }

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        found = {_renamed(name, OURS): weight for name, weight in hf_state_dict.items()}
        if self._tied and EMBEDDING in found:
            found.setdefault(OUTPUT, found[EMBEDDING])
        return found

    @property
    def _tied(self) -> bool:
        config: Any = self.model_config
        return bool(config.enable_weight_tying)


def _renamed(name: str, names: dict[str, str]) -> str:
    layer = re.search(r"\d+", name)
    if layer is None:
        return names[name]
    return names[re.sub(r"\d+", "{}", name, count=1)].format(layer[0])
