"""Map gpt-oss's weight names to and from Hugging Face's.

torchtitan 0.3.0's adapter uses old names of the experts' weights, and so omits them; and it knows
the names of the published MXFP4 files, not of a model saved by ``transformers``. There an expert's
matrices are (in, out), and here they are (out, in).
"""

from __future__ import annotations

import re
from typing import Any

from torchtitan.protocols.state_dict_adapter import StateDictAdapter

EXPERTS = "layers.{}.moe.routed_experts.inner_experts"
HUGGING_FACE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "layers.{}.attention.qkv_linear.wq.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.qkv_linear.wq.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.{}.attention.qkv_linear.wk.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.qkv_linear.wk.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.{}.attention.qkv_linear.wv.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.qkv_linear.wv.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.{}.attention.sinks": "model.layers.{}.self_attn.sinks",
    "layers.{}.attention.wo.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attention.wo.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layers.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.moe.router.gate.weight": "model.layers.{}.mlp.router.weight",
    "layers.{}.moe.router.gate.bias": "model.layers.{}.mlp.router.bias",
    f"{EXPERTS}.mlp1_weight_EGD": "model.layers.{}.mlp.experts.gate_up_proj",
    f"{EXPERTS}.mlp1_bias_EG": "model.layers.{}.mlp.experts.gate_up_proj_bias",
    f"{EXPERTS}.mlp2_weight_EDF": "model.layers.{}.mlp.experts.down_proj",
    f"{EXPERTS}.mlp2_bias_ED": "model.layers.{}.mlp.experts.down_proj_bias",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
OURS = {theirs: ours for ours, theirs in HUGGING_FACE.items()}
TRANSPOSED = ("mlp1_weight_EGD", "mlp2_weight_EDF", "gate_up_proj", "down_proj")

BIAS = "moe.expert_bias_E"
"""The load-balancing bias: Hugging Face's model has none, so it is left out."""


class GptOssStateDictAdapter(StateDictAdapter):
    """An adapter that renames weights and transposes the experts'.

    An unknown weight raises ``KeyError``.
    """

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        kept = {name: x for name, x in state_dict.items() if not name.endswith(BIAS)}
        return dict(_translated(name, weight, HUGGING_FACE) for name, weight in kept.items())

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return dict(_translated(name, weight, OURS) for name, weight in hf_state_dict.items())


def _translated(name: str, weight: Any, names: dict[str, str]) -> tuple[str, Any]:
    if name.endswith(TRANSPOSED):
        weight = weight.transpose(1, 2).contiguous()
    layer = re.search(r"\d+", name)
    if layer is None:
        return names[name], weight
    return names[re.sub(r"\d+", "{}", name, count=1)].format(layer[0]), weight
