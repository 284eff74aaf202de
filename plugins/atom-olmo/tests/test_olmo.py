"""The family has the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_olmo.build import olmo2
from atom_olmo.config import Olmo2

CONF = Path(__file__).parents[1] / "atom_olmo/conf/architecture"


def parameters(option: str) -> Olmo2:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert section.pop("name") == "olmo2"
    return Olmo2.model_validate(section)


@pytest.mark.parametrize(
    ("option", "vocab_size", "count"),
    [
        ("olmo2_tiny", 2048, 1_706_752),
        # As Hugging Face counts those of allenai/OLMo-2-0425-1B, -1124-7B, -1124-13B, -0325-32B.
        ("olmo2_1b", 100352, 1_484_916_736),
        ("olmo2_7b", 100352, 7_298_617_344),
        ("olmo2_13b", 100352, 13_716_198_400),
        ("olmo2_32b", 100352, 32_234_279_936),
    ],
)
def test_size_has_the_parameters_it_says(option: str, vocab_size: int, count: int) -> None:
    context = ArchitectureContext(vocab_size=vocab_size, seq_len=4096)
    with torch.device("meta"):
        model = olmo2(parameters(option), context).model.build()
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_heads": 3}, r"architecture\.n_heads=3: must divide dim=128"),
        ({"n_kv_heads": 3}, r"architecture\.n_kv_heads=3: must divide n_heads=4"),
    ],
)
def test_impossible_models_are_told(change: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Olmo2.model_validate(parameters("olmo2_tiny").model_dump() | change)
