"""Compare two ``config.json`` in Hugging Face's format: do they describe the same computation?

Every field counts, except those known to have no effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from typing import Any

NO_EFFECT = frozenset({
    # the author, and how the model is loaded
    "_name_or_path", "name_or_path", "_commit_hash", "architectures", "auto_map", "dtype",
    "transformers_version", "tokenizer_class", "use_bfloat16", "torchscript",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "experts_implementation", "_experts_implementation_internal",
    "pretraining_tp", "ep_size", "gradient_checkpointing", "unsloth_fixed", "unsloth_version",
    "transformers.js_config", "is_llama_config",
    # initialization, regularization and load balancing, used in training only
    "initializer_range", "attention_dropout", "hidden_dropout", "dropout", "output_router_logits",
    "router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha", "seq_aux",
    # extra outputs beside the logits; layers that predict later tokens
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "id2label",
    "label2id", "num_labels", "problem_type", "chunk_size_feed_forward", "is_decoder",
    "num_nextn_predict_layers",
    # the tokenizer's ids; settings of text generation
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id",
    "do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "min_length",
    "repetition_penalty", "num_beams",
    # positional range; where it affects the computation, RoPE's parameters have it
    "max_position_embeddings", "initial_context_length",
    # checked separately
    "quantization_config",
})  # fmt: skip
"""Fields that do not affect a model's computation."""

EFFECT = frozenset({
    "alibi", "attention_bias", "attention_chunk_size", "attention_multiplier",
    "attention_out_bias", "attn_logit_softcapping", "attn_temperature_tuning", "attn_scale",
    "clip_qkv", "decoder_sparse_step", "embedding_multiplier", "final_logit_softcapping",
    "first_k_dense_replace", "full_attention_interval", "hidden_act", "hidden_activation",
    "is_encoder_decoder", "layer_types", "logit_scale", "logit_softcapping", "logits_scaling",
    "mlp_bias", "mlp_only_layers", "moe_layer_freq", "n_group", "n_shared_experts",
    "no_rope_layers", "no_rope_layer_interval", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "parallel_attn", "qk_layernorm", "qk_norm", "qkv_bias",
    "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps", "rope_interleave",
    "routed_scaling_factor", "scale_embedding", "scoring_func", "sliding_window",
    "sliding_window_pattern", "soft_cap", "swiglu_alpha", "swiglu_limit", "topk_group",
    "topk_method", "use_bias", "use_parallel_residual", "use_qk_norm", "use_sliding_window",
    "window_size",
})  # fmt: skip
"""Fields that affect the computation in some model family.

An architecture without such a field cannot describe the same model, unless the field is switched
off.
"""

_ALIASES = {
    "experts_per_token": "num_experts_per_tok",
    "n_routed_experts": "num_experts",
    "num_local_experts": "num_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
    "torch_dtype": "dtype",
}

_ROPE = "rope_parameters"
_ROPE_FIELDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": None},
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
    "yarn": {
        "factor": None,
        "original_max_position_embeddings": None,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
        "attention_factor": None,
        "mscale": None,
        "mscale_all_dim": None,
    },
}
"""Parameters of each type of RoPE, with their defaults."""

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


_SAME_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "kimi_k2": ("deepseek_v3", {}),
    "mistral": ("llama", {"sliding_window": 4096, "num_key_value_heads": 8}),
}
"""Model types that are another type under a different name, with the fields they omit."""


class Disagreement(str):
    """The sentence that describes how two configs differ.

    Attributes:
        field: of ``config.json``, after renaming to the name that is compared.
        wanted: its value in the folder's config.
    """

    field: str
    wanted: Any

    def __new__(cls, words: str, field: str, wanted: Any = None) -> Disagreement:
        made = super().__new__(cls, words)
        made.field, made.wanted = field, wanted
        return made


def disagreement(
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    only: str | None = None,
    without: Container[str] = (),
) -> Disagreement | None:
    """Return the first difference in computation between two configs, or None.

    Args:
        theirs: ``config.json`` of a folder.
        ours: that of the architecture, as an export would write it.
        defaults: Hugging Face's defaults of this kind of model.
        only: compare only this field (:attr:`Disagreement.field`).
        without: fields to leave out.
    """
    rope = theirs.get("rope_scaling") or theirs.get(_ROPE) or {}
    for key in ("rope_theta", "partial_rotary_factor"):
        outer, inner = theirs.get(key), rope.get(key)
        if None not in (outer, inner) and outer != inner:
            both = f"{_json(outer)} and, with RoPE's parameters, {_json(inner)}"
            return Disagreement(f"its config.json says {key}={both}", key)
    there, here = _canonical(theirs, defaults), _canonical(ours, defaults)
    if only is not None:
        if (only in there) != (only in here):
            return Disagreement(f"one of both leaves out {only}", only, there.get(only))
        there, here = ({only: at[only]} if only in at else {} for at in (there, here))
    there, here = ({k: v for k, v in at.items() if k not in without} for at in (there, here))
    for key in dict.fromkeys([*_canonical(ours, {}), *here]):
        compared = key in there and key in here and key not in NO_EFFECT
        if compared and not _same(there[key], here[key]):
            words = f"{_said(key, there[key], theirs)}, the architecture {_json(here[key])}"
            return Disagreement(words, key, there[key])
    if defaults:
        # A field without a default is a size, which is always present.
        lacking = [key for key in here if key not in there and key not in NO_EFFECT]
        if lacking := [key for key in lacking if here[key] not in _OFF]:
            words = f"its config.json leaves out {lacking[0]}, {_json(here[lacking[0]])} here"
            return Disagreement(words, lacking[0])
    for key in sorted(there.keys() - here.keys() - NO_EFFECT):
        if key in EFFECT and there[key] not in _OFF:
            words = f"{_said(key, there[key], theirs)}, which the architecture does not know"
            return Disagreement(words, key, there[key])
    return None


def scaling(config: Mapping[str, Any]) -> str | None:
    """Return how a config scales RoPE, by Hugging Face's name; None if it says nothing of RoPE."""
    found: str | None = _canonical(config, {}).get(f"{_ROPE}.rope_type")
    return found


SCALING = frozenset(
    f"{_ROPE}.{name}"
    for name in ("rope_type", *(field for fields in _ROPE_FIELDS.values() for field in fields))
)
"""Fields of the scaling of RoPE, by canonical name."""


def unknown(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Return the fields that only one config has and that may have an effect, a phrase for each."""
    there, here = _canonical(theirs, defaults), _canonical(ours, defaults)
    only_there = [
        f"{key}={_json(there[key])} is unknown to the architecture"
        for key in sorted(there.keys() - here.keys() - NO_EFFECT)
        if there[key] is not None
    ]
    only_here = [
        f"{key} is left out, {_json(here[key])} is taken"
        for key in sorted(here.keys() - there.keys() - NO_EFFECT)
        if here[key] not in _OFF
    ]
    return only_there + only_here


def _canonical(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``config`` under canonical names, with defaults filled in."""
    filled: dict[str, Any] = {}
    kind, left_out = _SAME_MODELS.get(config.get("model_type", ""), (None, {}))
    renamed = {"model_type": kind} if kind else {}
    for given in (dict(defaults) | left_out if defaults else {}, config, renamed):
        for key, value in given.items():
            name = _ALIASES.get(key, key)
            # If two aliases of a field have different values, keep both as fields.
            clash = name != key and name in given and given[name] != value
            filled[key if clash else name] = value
    heads = filled.get("num_attention_heads")
    if filled.get("num_key_value_heads") is None and heads:
        filled["num_key_value_heads"] = heads
    if "head_dim" in filled and filled["head_dim"] is None and heads and "hidden_size" in filled:
        filled["head_dim"] = filled["hidden_size"] // heads
    for key in ("layer_types", "mlp_only_layers"):
        if filled.get(key) is None and key in defaults:
            filled[key] = defaults[key]
    interval = filled.pop("full_attention_interval", None)
    if filled.get("layer_types") is None and interval and filled.get("num_hidden_layers"):
        filled["layer_types"] = [
            "linear_attention" if number % interval else "full_attention"
            for number in range(1, filled["num_hidden_layers"] + 1)
        ]
    if set(filled.get("layer_types") or ()) == {"full_attention"}:
        filled["layer_types"] = None
    if filled.get("use_sliding_window") is False:
        filled["sliding_window"] = None
        filled.pop("max_window_layers", None)
    if filled.get("decoder_sparse_step") == 1 and not filled.get("mlp_only_layers"):
        filled.pop("intermediate_size", None)  # width of dense layers only
    if filled.get("hidden_act") == "swish":
        filled["hidden_act"] = "silu"
    return filled | _rope(filled)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Remove RoPE's parameters from ``config``, at any level; return each as a field."""
    scaling = config.pop("rope_scaling", None)
    given = dict(scaling or config.pop(_ROPE, None) or {})
    config.pop(_ROPE, None)
    top = {key: config.pop(key, None) for key in ("rope_theta", "partial_rotary_factor")}
    if not given and top["rope_theta"] is None:
        return {}
    old = given.pop("type", None)
    kind = given.pop("rope_type", None) or old or "default"
    for key, value in top.items():
        given.setdefault(key, value)
    if given["partial_rotary_factor"] is None:
        given["partial_rotary_factor"] = 1.0
    # For text, all three positions are equal.
    for key in ("mrope_section", "mrope_interleaved"):
        given.pop(key, None)
    known = _ROPE_FIELDS.get(kind, {})
    given = known | {key: value for key, value in given.items() if value is not None}
    reach = config.get("max_position_embeddings")
    if "original_max_position_embeddings" in known:
        wanted = config.pop("original_max_position_embeddings", None)
        before = wanted or given["original_max_position_embeddings"] or reach
        given["original_max_position_embeddings"] = before
        if given["factor"] is None and reach and before:
            given["factor"] = reach / before
    elif kind not in _ROPE_FIELDS:
        given["max_position_embeddings"] = reach
    if kind == "yarn":
        _sharpen(given)
    names = {key: key if key == "rope_theta" else f"{_ROPE}.{key}" for key in given}
    return {f"{_ROPE}.rope_type": kind} | {names[key]: value for key, value in given.items()}


def _sharpen(rope: dict[str, Any]) -> None:
    """Replace the variants of YaRN's attention factor by the resulting number."""
    scale, of_all = rope.pop("mscale"), rope["mscale_all_dim"]

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope["attention_factor"] is None and isinstance(rope["factor"], int | float):
        both = scale and of_all
        rope["attention_factor"] = sharpness(scale) / sharpness(of_all) if both else sharpness(1.0)
    rope["mscale_all_dim"] = of_all or 0


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


def _said(key: str, value: Any, config: Mapping[str, Any]) -> str:
    """Return the value of a field in ``config.json``, or its default if absent, as text."""
    names = [key, *(alias for alias, name in _ALIASES.items() if name == key)]
    rope = (config.get("rope_scaling") or config.get(_ROPE) or {}).keys() | config.keys()
    field = key.removeprefix(f"{_ROPE}.")
    known = next((name for name in names if name in config), key)
    if known in config or field in rope or (field == "rope_type" and "type" in rope):
        return f"its config.json says {known}={_json(value)}"
    return f"its config.json leaves out {key}, which means {_json(value)}"


def _json(value: Any) -> str:
    return json.dumps(value)
