"""The family is torchtitan's own, to the last parameter, and computes what Hugging Face's does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchtitan.models.gpt_oss import gptoss_configs

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_gpt_oss.build import gpt_oss
from atom_gpt_oss.config import GptOss
from atom_kernels_torch.attention import varlen_attention

CONF = Path(__file__).parents[1] / "atom_gpt_oss/conf/architecture"


def parameters(option: str) -> GptOss:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert section.pop("name") == "gpt_oss"
    return GptOss.model_validate(section)


@pytest.mark.parametrize("size", ["20b", "120b"])
def test_size_is_torchtitans(size: str) -> None:
    context = ArchitectureContext(vocab_size=201088, seq_len=131072)
    ours = gpt_oss(parameters(f"gpt_oss_{size}"), context).model.to_dict()
    theirs = gptoss_configs[size](moe_comm_backend="standard", attn_backend="flex").to_dict()
    # Initialisers print with an address; all else must be the same.
    assert _without_addresses(ours) == _without_addresses(theirs)


def test_tiny_has_the_parameters_it_says() -> None:
    context = ArchitectureContext(vocab_size=2048, seq_len=256)
    with torch.device("meta"):
        model = gpt_oss(parameters("gpt_oss_tiny"), context).model.build()
    assert sum(p.numel() for p in model.parameters()) == 2_312_880


def test_windows_outlive_a_change_of_kernel() -> None:
    context = ArchitectureContext(vocab_size=256, seq_len=64)
    config = gpt_oss(parameters("gpt_oss_tiny"), context).model
    for layer in config.layers:
        layer.attention.inner_attention = varlen_attention(layer.attention.inner_attention)
    with torch.device("meta"):
        model = config.build()
    windows = [block.attention.inner_attention.window_size for block in model.layers.values()]
    assert windows == [(31, 0), (-1, 0), (31, 0), (-1, 0)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_kv_heads": 3}, r"architecture\.n_kv_heads=3: must divide n_heads=4"),
        ({"top_k": 9}, r"architecture\.top_k=9: must be at most num_experts=8"),
    ],
)
def test_impossible_models_are_told(change: dict[str, Any], says: str) -> None:
    tiny = parameters("gpt_oss_tiny").model_dump()
    with pytest.raises(UserError, match=says):
        GptOss.model_validate(tiny | change)


def _without_addresses(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_addresses(item) for item in value]
    return value.partition(" at 0x")[0] if isinstance(value, str) else value
