"""Compare an architecture with its counterpart in ``transformers``.

Weights go both ways through files in the format of ``transformers``, so that the comparison covers
what a user would get.

Shape suffixes: B = sequences, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atom.registry.host import Host
from atom.testing import models, partners

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""Maximum |difference| of a logit, in float32."""


def assert_same_logits(
    architecture: dict[str, Any],
    counterpart: dict[str, Any],
    folder: Path,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Assert that random weights give the same logits here and in ``transformers``, both ways.

    The test is skipped if ``transformers`` is not installed.

    Args:
        architecture: its name and parameters, as in a run.
        counterpart: the Hugging Face configuration of the same model: ``model_type`` and so on. The
            vocabulary is added. The architecture's ``hf_config``, if any, must agree with it.
        folder: an empty folder.
        tolerance: maximum difference.
    """
    transformers = pytest.importorskip("transformers")
    import torch
    from safetensors.torch import load_file, save_file

    settings = counterpart | {"vocab_size": partners.VOCAB_SIZE}
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.AutoConfig.for_model(**settings)
    subject = models.subject(Host.load(), architecture)
    adapter_class = subject.parts.state_dict_adapter
    assert adapter_class is not None, "the architecture declares no state-dict adapter"
    adapter = adapter_class(subject.config(), None)
    ids_BL = subject.tokens(2)

    model = _disturbed(subject.model(), seed=1)
    there = folder / "there"
    config.save_pretrained(there)
    if subject.parts.hf_config is not None:
        _assert_says(subject.parts.hf_config, settings, config)
        (there / "config.json").write_text(json.dumps(subject.parts.hf_config))
    exported = {name: x.contiguous() for name, x in adapter.to_hf(models.state(model)).items()}
    save_file(exported, there / "model.safetensors", metadata={"format": "pt"})
    counterpart_model, found = transformers.AutoModelForCausalLM.from_pretrained(
        there, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"], "weights that the exported files lack"
    assert not found["unexpected_keys"], "weights that transformers does not know"
    _assert_close(model, counterpart_model, ids_BL, tolerance)

    torch.manual_seed(2)
    reference = _disturbed(transformers.AutoModelForCausalLM.from_config(config).float(), seed=3)
    back = folder / "back"
    reference.save_pretrained(back)
    imported = adapter.from_hf(load_file(back / "model.safetensors"))
    loaded = model.load_state_dict(imported, strict=False)
    assert not loaded.unexpected_keys
    missing = set(loaded.missing_keys) - {name for name, _ in model.named_buffers()}
    assert not missing, "weights that the import leaves as they were"
    _assert_close(model, reference, ids_BL, tolerance)


def _assert_says(own: Mapping[str, Any], expected: Mapping[str, Any], config: Any) -> None:
    """Assert that ``hf_config`` is the configuration ``config``, built from ``expected``."""
    made = type(config)(**{key: value for key, value in own.items() if key != "model_type"})
    assert own["model_type"] == config.model_type
    family = type(config).__name__.removesuffix("Config").removesuffix("Text")
    assert family in own["architectures"][0]
    for key in expected:
        assert key.endswith("_token_id") or getattr(made, key) == getattr(config, key), key


def _disturbed(model: Any, seed: int) -> Any:
    """Add noise to the weights, because norms of one and biases of zero would hide
    swapped weights.
    """
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _assert_close(model: Any, reference: Any, ids_BL: torch.Tensor, tolerance: float) -> None:
    import torch

    with torch.no_grad():
        logits_BLV = models.logits(model, ids_BL)
        expected_BLV = reference(ids_BL).logits
    assert expected_BLV.std() > 0.1, "logits that say nothing"
    difference = (logits_BLV - expected_BLV).abs().max().item()
    assert difference <= tolerance, f"logits differ from those of transformers by {difference:.1e}"
