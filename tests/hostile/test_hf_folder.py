"""A folder of Hugging Face's format from a stranger: no file that a link in it names is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 320, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.safetensors", "link"),
        ("model.safetensors.index.json", "link"),
        ("model.safetensors.index.json", "pipe"),
        ("config.json", "link"),
    ],
)
def test_a_file_that_is_elsewhere(
    name: str, kind: str, watched_atom: Any, small: tuple[str, ...], tmp_path: Path
) -> None:
    model, secret = tmp_path / "model", tmp_path / "authorized_keys"
    model.mkdir()
    secret.write_text('{"weight_map": {"swordfish": "x.safetensors"}}')
    (model / "config.json").write_text(json.dumps(CONFIG))
    save_file({"model.norm.weight": torch.ones(64)}, model / "model.safetensors")
    (model / name).unlink(missing_ok=True)
    if kind == "link":
        (model / name).symlink_to(secret)
    else:
        os.mkfifo(model / name)
    result = watched_atom(
        "train", *small, f"checkpoint.initial_load=hf:{model}", f"run.dir={tmp_path / 'run'}",
        cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert result.returncode == 2, result.stdout + result.stderr
    said = result.stderr.strip()
    assert said.startswith("atom: checkpoint.initial_load="), said
    assert len(said.splitlines()) == 1
    assert name in said
    assert kind == "pipe" or "a link that leads out of it" in said
    assert "swordfish" not in said
    assert not (tmp_path / "run").exists()
