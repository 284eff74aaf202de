"""The family is torchtitan's own, to the last parameter, and its experts can be shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchtitan.models.deepseek_v3 import deepseekv3_configs
from torchtitan.models.kimi_k2_7 import kimi_k2_5_configs

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_deepseek.build import deepseek_v3
from atom_deepseek.config import DeepSeekV3

CONF = Path(__file__).parents[1] / "atom_deepseek/conf/architecture"
BACKENDS = {"attn_backend": "flex", "moe_comm_backend": "standard"}


def parameters(option: str) -> DeepSeekV3:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert section.pop("name") == "deepseek_v3"
    return DeepSeekV3.model_validate(section)


@pytest.mark.parametrize(
    ("option", "theirs"),
    [
        ("deepseek_v3_16b", deepseekv3_configs["16B"]),
        ("deepseek_v3_671b", deepseekv3_configs["671B"]),
        ("kimi_k2", kimi_k2_5_configs["Kimi-K2.5"]),
    ],
)
def test_size_is_torchtitans(option: str, theirs: Any) -> None:
    expected = theirs(**BACKENDS)
    context = ArchitectureContext(vocab_size=expected.vocab_size, seq_len=8192)
    # Published with 1e-6; torchtitan's has 1e-5.
    config = parameters(option).model_copy(update={"norm_eps": 1e-5})
    ours = deepseek_v3(config, context).model
    # Initialisers print with an address; all else must be the same, but for a vision tower.
    theirs_without = expected.to_dict()
    theirs_without.pop("vision_encoder", None)
    assert _without_addresses(ours.to_dict()) == _without_addresses(theirs_without)


def test_tiny_has_the_parameters_it_says() -> None:
    context = ArchitectureContext(vocab_size=2048, seq_len=256)
    with torch.device("meta"):
        model = deepseek_v3(parameters("deepseek_v3_tiny"), context).model.build()
    assert sum(p.numel() for p in model.parameters()) == 1_593_984


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_dense_layers": 5}, r"architecture\.n_dense_layers=5: must be at most n_layers=4"),
        ({"top_k": 9}, r"architecture\.top_k=9: must be at most num_experts=8"),
        ({"top_k": 5}, r"architecture\.top_k=5: must be at most 4, the experts of"),
        ({"num_expert_groups": 3}, r"architecture\.num_expert_groups=3: must divide"),
        ({"num_limited_groups": None}, r"architecture\.num_limited_groups=.*set where that is"),
    ],
)
def test_impossible_models_are_told(change: dict[str, Any], says: str) -> None:
    tiny = parameters("deepseek_v3_tiny").model_dump()
    with pytest.raises(UserError, match=says):
        DeepSeekV3.model_validate(tiny | change)


def _without_addresses(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_addresses(item) for item in value]
    return value.partition(" at 0x")[0] if isinstance(value, str) else value
