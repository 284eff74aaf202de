"""A small model of each family, and run folders with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from atom.recipe.resolved import Resolved
from atom.recipe.run import DEGREES, parse, read
from atom.run_dir import checkpoint
from atom.titan import saved_model
from atom.titan.checkpoint.dcp import AtomicWriter
from atom.titan.lora.adapt import adapt, is_adapter
from atom.titan.weights.base import digest

VOCABULARY = 320
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
MIXTURE = {"moe_hidden_dim": 32, "num_experts": 8, "top_k": 2, "load_balance_coeff": None}
LATENT = {
    "dim": 64,
    "n_layers": 2,
    "n_dense_layers": 1,
    "n_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "dense_hidden_dim": 128,
    "moe_hidden_dim": 32,
    "num_experts": 8,
    "num_shared_experts": 1,
    "top_k": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"name": "llama3", **SHAPE, "rope_scaling": "none"},
    "llama3, tied, scaled rope": {"name": "llama3", **SHAPE, "tie_embeddings": True},
    "qwen3, tied": {
        "name": "qwen3", **SHAPE, "head_dim": 16, "hidden_dim": 128, "tie_embeddings": True
    },
    "qwen3_moe": {"name": "qwen3_moe", **SHAPE, "head_dim": 16, **MIXTURE},
    "olmo2": {"name": "olmo2", **SHAPE, "hidden_dim": 128},
    "gpt_oss": {"name": "gpt_oss", **SHAPE, "head_dim": 16, "sliding_window": 8, **MIXTURE},
    "deepseek_v3": {"name": "deepseek_v3", **LATENT},
    "qwen3_5": {
        "name": "qwen3_5", **SHAPE, "n_layers": 4, "hidden_dim": 128, "head_dim": 16,
        "rotary_dim": 8, "n_key_heads": 2, "n_value_heads": 4, "key_head_dim": 16,
        "value_head_dim": 16,
    },
    "deepseek_v3, stretched rope": {
        "name": "deepseek_v3", **LATENT, "q_lora_rank": 32, "rope_factor": 40.0, "mscale": 0.7
    },
}  # fmt: skip
LLAMA = FAMILIES["llama3"]

Save = Callable[..., Path]


def saver(below: Path) -> Save:
    """Return what writes a run's folder with a checkpoint of random weights, as if trained."""

    def save(architecture: dict[str, Any], name: str = "run", noise: float = 0.05) -> Path:
        folder = below / name
        folder.mkdir()
        described = parse(
            {
                "architecture": architecture,
                "tokenizer": {"name": "bytes"},
                "optimizer": {"name": "AdamW"},
                "dataset": {"name": "stdlib"},
                "parallelism": {"name": "mesh"},
            }
        )
        resolved = Resolved(
            device="cpu",
            world_size=1,
            vocab_size=VOCABULARY,
            global_batch_size=8,
            degrees=dict.fromkeys(DEGREES, 1),
            kernels={},
        )
        described.model_copy(update={"resolved": resolved}).write(folder / "run.yaml")
        model: Any = saved_model.on_meta(saved_model.trained(folder).parts.model)
        model.to_empty(device="cpu")
        torch.manual_seed(0)
        with torch.no_grad():
            model.init_weights(buffer_device=None)
            # Norms of one and biases of zero would hide which is which.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
        state = model.state_dict()
        place = folder / checkpoint.FOLDER
        dcp.save(state, storage_writer=AtomicWriter(place, 3, model_only=True), no_dist=True)
        return folder

    return save


def adapted(base: Path, folder: Path, lora: dict[str, Any]) -> Path:
    """Write a run with random adapters of the run ``base``, as if trained; return its folder."""
    folder.mkdir()
    before = read(base / "run.yaml")
    place = checkpoint.step_folder(base / checkpoint.FOLDER, 3)
    weights = {"initial_load": str(place), "enable": True}
    described = parse(before.model_dump(mode="json") | {"lora": lora, "checkpoint": weights})
    assert described.resolved is not None
    resolved = described.resolved.model_copy(update={"base": digest(described, verify=True)})
    described.model_copy(update={"resolved": resolved}).write(folder / "run.yaml")
    torch.manual_seed(1)
    parts = adapt(saved_model.trained(folder).parts, described.lora)
    state = {
        name: torch.randn(parameter.shape) * 0.3
        for name, parameter in saved_model.on_meta(parts.model).named_parameters()
        if is_adapter(name)
    }
    writer = AtomicWriter(folder / checkpoint.FOLDER, 3, model_only=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return folder
