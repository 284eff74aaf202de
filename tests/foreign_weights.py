"""Models of each family, with the weights and the logits of ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from atom.plugin import ModelParts
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing.models import logits
from atom.titan import saved_model, translate
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.hugging_face import weights as hf_weights
from atom.titan.trainer_config import model_parts

TOLERANCE = 1e-4
"""|difference in a logit|, in float32."""

VOCABULARY = 320
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
MIXTURE = {"moe_hidden_dim": 32, "num_experts": 8, "top_k": 2, "load_balance_coeff": None}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {
        "name": "llama3", **SHAPE, "rope_factor": 32.0, "rope_low_freq_factor": 0.5,
        "rope_high_freq_factor": 3.0, "rope_original_seq_len": 16,
    },
    "llama3, tied": {
        "name": "llama3", **SHAPE, "rope_scaling": "none", "tie_embeddings": True,
        "norm_eps": 1e-2, "hidden_dim": 96,
    },
    "qwen3": {"name": "qwen3", **SHAPE, "head_dim": 16, "hidden_dim": 128, "norm_eps": 1e-2},
    "qwen3_moe": {"name": "qwen3_moe", **SHAPE, "head_dim": 16, **MIXTURE},
    "olmo2": {"name": "olmo2", **SHAPE, "hidden_dim": 128},
    "gpt_oss": {"name": "gpt_oss", **SHAPE, "head_dim": 16, "sliding_window": 8, **MIXTURE,
                "norm_eps": 1e-2},
    "deepseek_v3": {
        "name": "deepseek_v3", "dim": 64, "n_layers": 2, "n_dense_layers": 1, "n_heads": 4,
        "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "dense_hidden_dim": 128, "moe_hidden_dim": 32, "num_experts": 8,
        "num_shared_experts": 1, "top_k": 2, "rope_factor": 40.0, "mscale": 0.7,
        "num_expert_groups": 4, "num_limited_groups": 2,
    },
    "qwen3_5": {
        "name": "qwen3_5", **SHAPE, "n_layers": 4, "hidden_dim": 128, "head_dim": 16,
        "rotary_dim": 8, "n_key_heads": 2, "n_value_heads": 4, "key_head_dim": 16,
        "value_head_dim": 16,
    },
}  # fmt: skip


def parts_of(architecture: dict[str, Any]) -> ModelParts:
    run = parse(
        {
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
        }
    )
    training = translate.training(run.training, "cpu")
    parts = model_parts(select(run, Host.load()), VOCABULARY, 64)
    saved_model.on_one_rank(parts, training)
    return parts


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def theirs(folder: Path) -> Any:
    """Return the model of ``transformers`` in a folder, its weights all found there."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not found["missing_keys"]
    return model


IDS_BL = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def said(model: Any) -> torch.Tensor:
    return model(IDS_BL).logits


def check(parts: ModelParts, folder: Path) -> tuple[str | None, list[str]]:
    return hf_weights.check(parts, saved_model.adapter(parts, "it"), folder)


@torch.no_grad()
def ours(parts: ModelParts, folder: Path) -> torch.Tensor:
    """Return the logits of ATOM's model with the weights of ``folder``."""
    model: Any = saved_model.on_meta(parts.model)
    model.to_empty(device="cpu")
    model.init_weights(buffer_device=None)
    adapter = saved_model.adapter(parts, "it")
    loaded = hf_reader.load(model.state_dict(), adapter, folder, alone=True)
    model.load_state_dict(loaded, strict=False)
    return logits(model.eval(), IDS_BL)
