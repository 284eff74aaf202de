"""Check the weights of a folder in Hugging Face's format against a model."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from atom.plugin import ModelParts
from atom.titan import saved_model
from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.hugging_face import config as hf_config

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Names of tensors that are not weights but follow from the config."""

_LAYER = re.compile(r"model\.layers\.(\d+)\..*")
_BLOCK = [128, 128]
"""The rows and columns that share a scale in torchtitan's format of quantized weights."""


def check(
    parts: ModelParts,
    adapter: Any,
    folder: Path,
    *,
    quantized: bool = False,
    without: Container[str] = (),
) -> tuple[str | None, list[str]]:
    """Check the weights in ``folder`` against a model.

    Args:
        parts: the model's, with its sharding set.
        adapter: its state-dict adapter.
        folder: in Hugging Face's format.
        quantized: whether to read quantized weights.
        without: fields of its config that may differ.

    Returns:
        Why the weights belong to another model, or None; and notes for the user, a sentence each.

    Raises:
        ValueError: the folder cannot be read.
    """
    found = hf_folder.tensors(folder)
    theirs = hf_folder.config(folder)
    ours, defaults = dict(parts.hf_config or {}), dict(parts.hf_defaults or {})
    problem = _packing(theirs.get("quantization_config"), adapter, quantized=quantized)
    if problem is None and ours:
        problem = hf_config.disagreement(theirs, ours, defaults, without=without)
    if problem is not None:
        return problem, []
    notes = [f"its {name} is not read" for name in hf_folder.others(folder)]
    if ours:
        notes += [
            f"its config.json: {words}" for words in hf_config.unknown(theirs, ours, defaults)
        ]
    else:
        notes.append("its config.json is not compared: the architecture declares none")
    if not quantized:
        expected = adapter.to_hf(saved_model.on_meta(parts.model).state_dict())
        problem = saved_model.difference(expected, {name: x.shape for name, x in found.items()})
        problem = problem or _odd(expected, found, theirs, notes)
    return problem, notes


def _packing(packed: Any, adapter: Any, *, quantized: bool) -> str | None:
    """Return why the quantization in ``quantization_config`` is not supported, or None."""
    key = "checkpoint.initial_load_in_hf_quantized"
    own = type(adapter).get_hf_storage_reader
    reads_them = own is not StateDictAdapter.get_hf_storage_reader
    if not quantized:
        if packed is None:
            return None
        kind = packed.get("quant_method") if isinstance(packed, dict) else packed
        remedy = f", or {key}=true" if reads_them and kind == "fp8" else ""
        return f"its weights are quantized ({kind}); valid: weights of full precision{remedy}"
    if not reads_them:
        return f"{key}=true, and this architecture reads no quantized weights"
    if not isinstance(packed, dict):
        return f"{key}=true, and its config.json has no quantization_config"
    kind, block = packed.get("quant_method"), packed.get("weight_block_size", _BLOCK)
    if kind != "fp8" or block != _BLOCK:
        return f"its weights are quantized as {kind} in blocks of {block}; valid: fp8, {_BLOCK}"
    return None


def _odd(
    expected: Mapping[str, torch.Tensor],
    found: Mapping[str, hf_folder.Tensor],
    config: Mapping[str, Any],
    notes: list[str],
) -> str | None:
    """Return a problem that shapes do not show, or None: quantized tensors, and unknown ones."""
    for name in expected:
        if found[name].dtype not in hf_folder.PLAIN:
            return f"{name} is stored as {found[name].dtype}, which is no weight by itself"
    extra = [name for name in found if name not in expected and not _COMPUTED.fullmatch(name)]
    if OUTPUT in extra and EMBEDDING in expected:
        if not hf_folder.same(found[OUTPUT], OUTPUT, found[EMBEDDING], EMBEDDING):
            return f"the architecture ties its embeddings, and there {OUTPUT} is not {EMBEDDING}"
        extra.remove(OUTPUT)
    ahead = [name for name in extra if _predicts_later(name, config)]
    if ahead:
        notes.append(f"its {len(ahead)} weights of multi-token prediction layers are skipped")
        extra = [name for name in extra if name not in ahead]
    if extra:
        return f"{len(extra):,} of its weights are unknown to this architecture, such as {extra[0]}"
    return None


def _predicts_later(name: str, config: Mapping[str, Any]) -> bool:
    layer = _LAYER.fullmatch(name)
    return name.startswith("mtp.") or (
        layer is not None
        and bool(config.get("num_nextn_predict_layers") or config.get("num_mtp_layers"))
        and int(layer[1]) >= config["num_hidden_layers"]
    )
