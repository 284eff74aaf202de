"""The family is torchtitan's own, to the last parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchtitan.models.qwen3 import qwen3_configs

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_qwen3.build import qwen3, qwen3_moe
from atom_qwen3.config import Qwen3, Qwen3MoE

CONF = Path(__file__).parents[1] / "atom_qwen3/conf/architecture"
SIZES = {
    "qwen3_0_6b": "0.6B",
    "qwen3_1_7b": "1.7B",
    "qwen3_4b": "4B",
    "qwen3_8b": "8B",
    "qwen3_14b": "14B",
    "qwen3_32b": "32B",
    "qwen3_30b_a3b": "30B-A3B",
    "qwen3_235b_a22b": "235B-A22B",
}


def model(option: str, context: ArchitectureContext) -> Any:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    if section.pop("name") == "qwen3":
        return qwen3(Qwen3.model_validate(section), context).model
    return qwen3_moe(Qwen3MoE.model_validate(section), context).model


@pytest.mark.parametrize("option", SIZES)
def test_size_is_torchtitans(option: str) -> None:
    context = ArchitectureContext(vocab_size=151936, seq_len=40960)
    ours = model(option, context).to_dict()
    theirs = qwen3_configs[SIZES[option]](attn_backend="flex").to_dict()
    # Initialisers print with an address; all else must be the same.
    assert _without_addresses(ours) == _without_addresses(theirs)


@pytest.mark.parametrize(
    ("option", "parameters"), [("qwen3_tiny", 1_705_984), ("qwen3_tiny_moe", 2_299_264)]
)
def test_tiny_has_the_parameters_it_says(option: str, parameters: int) -> None:
    context = ArchitectureContext(vocab_size=2048, seq_len=256)
    with torch.device("meta"):
        built = model(option, context).build()
    assert sum(p.numel() for p in built.parameters()) == parameters


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_kv_heads": 3}, r"architecture\.n_kv_heads=3: must divide n_heads=4"),
        ({"top_k": 9}, r"architecture\.top_k=9: must be at most num_experts=8"),
    ],
)
def test_impossible_models_are_told(change: dict[str, int], says: str) -> None:
    section = yaml.safe_load((CONF / "qwen3_tiny_moe.yaml").read_text())
    del section["name"]
    with pytest.raises(UserError, match=says):
        Qwen3MoE.model_validate(section | change)


def _without_addresses(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_addresses(item) for item in value]
    return value.partition(" at 0x")[0] if isinstance(value, str) else value
