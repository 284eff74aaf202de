"""The family has the published sizes and computes what Hugging Face's does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom.testing import conformance
from atom_olmo.build import olmo2
from atom_olmo.config import Olmo2
from atom_olmo.state_dict_adapter import Olmo2StateDictAdapter

CONF = Path(__file__).parents[1] / "atom_olmo/conf/architecture"
TOLERANCE = 1e-4
"""|difference in a logit| in float32. Seen: about 1e-6."""

TestOlmo2 = conformance(
    "architecture:olmo2", dim=64, n_layers=4, n_heads=4, n_kv_heads=2, hidden_dim=128
)


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


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_are_those_of_transformers(kv_heads: int) -> None:
    """With the same random weights and tokens, whichever model the weights come from."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=128,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            pad_token_id=None,
        )
    ).eval()
    with torch.no_grad():  # Norms of one would hide which norm is which.
        for name, weight in reference.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    config = Olmo2(
        dim=64, n_layers=3, n_heads=4, n_kv_heads=kv_heads, hidden_dim=128, max_seq_len=128
    )
    ours, adapter = built(config)
    loaded = ours.load_state_dict(adapter.from_hf(reference.state_dict()), strict=True)
    assert not loaded.missing_keys
    ids_BL = torch.randint(256, (2, 48))
    with torch.no_grad():
        expected_BLV = reference(ids_BL).logits
        logits_BLV = logits(ours, ids_BL)
    assert expected_BLV.std() > 0.1
    assert (logits_BLV - expected_BLV).abs().max() <= TOLERANCE

    # And the other way round.
    seeded, _ = built(config, seed=1)
    reference.load_state_dict(adapter.to_hf(seeded.state_dict()), strict=True)
    with torch.no_grad():
        difference = (logits(seeded, ids_BL) - reference(ids_BL).logits).abs().max()
    assert difference <= TOLERANCE


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


def built(config: Olmo2, seed: int = 0) -> tuple[Any, Olmo2StateDictAdapter]:
    """Return a model of ``config`` with random weights, and its adapter."""
    from torchtitan.config.override import derive

    from atom_kernels_torch.attention import DenseAttention

    model_config = olmo2(config, ArchitectureContext(vocab_size=256, seq_len=128)).model
    for layer in model_config.layers:
        layer.attention.inner_attention = derive(
            layer.attention.inner_attention, DenseAttention.Config
        )
    torch.manual_seed(seed)
    model = model_config.build()
    model.init_states()
    return model, Olmo2StateDictAdapter(model_config, None)


def logits(model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
    positions_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL).contiguous()
    masks = model.get_attention_masks(positions=positions_BL)
    return model(ids_BL, positions=positions_BL, attention_masks=masks)
