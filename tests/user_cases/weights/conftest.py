"""Weights that ``transformers`` has saved."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.plugin import ModelParts


@pytest.fixture(scope="module", autouse=True)
def transformers_without_fla() -> None:
    """Where ``transformers`` finds ``fla``, it takes kernels that need a GPU, on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        with suppress(ModuleNotFoundError):
            importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a model with random weights as ``transformers`` does, by an architecture's config."""

    def save(parts: ModelParts, name: str = "there", **options: Any) -> Path:
        import transformers

        config = transformers.AutoConfig.for_model(**copy.deepcopy(dict(parts.hf_config or {})))
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.save_pretrained(tmp_path / name, **options)
        return tmp_path / name

    return save
