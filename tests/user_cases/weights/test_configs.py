"""Weights to start from: of this model and of no other, read from the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign_weights import (
    FAMILIES,
    SHAPE,
    TOLERANCE,
    VOCABULARY,
    check,
    ours,
    parts_of,
    said,
    theirs,
    write,
)

from atom.recipe.run import parse
from atom.registry.host import Host
from atom.titan.hugging_face import config as hf_config
from atom.titan.hugging_face import remedy

MADE_UP: dict[str, Any] = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 8,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention"] * 4,
    "partial_rotary_factor": 0.5,
    "qk_norm": True,
    "clip_qkv": 1.0,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "routed_scaling_factor": 3.0,
    "n_group": 2,
    "topk_group": 1,
    "swiglu_limit": 1.0,
    "rope_theta": 1234.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
}
"""Fields that other families have, and those of older files."""

ROPE: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "default": {},
}  # fmt: skip
"""Types of RoPE that a file may name, with what it needs."""


def changes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each field with a config in which it says something else."""

    def other(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value * 2 or 1
        if isinstance(value, list):
            return value[::-1] if value[::-1] != value else [0]
        return "gelu" if isinstance(value, str) else 3

    for key, value in config.items():
        if key == "rope_parameters":
            for part, before in value.items():
                yield part, config | {key: value | {part: other(before)}}
            for kind, needs in ROPE.items():
                rope = {"rope_type": kind, "rope_theta": value["rope_theta"], **needs}
                if kind != value["rope_type"]:
                    yield "rope_type", config | {key: rope}
        elif key not in ("model_type", "transformers_version"):
            yield key, config | {key: other(value)}
            yield key, {name: kept for name, kept in config.items() if name != key}
    for key, value in MADE_UP.items():
        if config.get(key) != value:
            yield key, config | {key: value}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_another_config_is_refused_or_computes_the_same(
    family: str, saved: Callable[..., Path]
) -> None:
    """Each field of ``config.json`` is changed, and left out: ``transformers`` is the oracle."""
    parts = parts_of(FAMILIES[family])
    folder = saved(parts)
    assert check(parts, folder) == (None, []), "what transformers writes is no news"
    expected_BLV = said(theirs(folder))
    assert (ours(parts, folder) - expected_BLV).abs().max() <= (3 if "3_5" in family else 1) * 1e-4
    config = json.loads((folder / "config.json").read_text())
    refused: set[str] = set()
    agreed: list[tuple[str, dict[str, Any]]] = []
    for key, changed in changes(config):
        write(folder, changed)
        problem, notes = check(parts, folder)
        if problem is not None:
            words = {key, hf_config._ALIASES.get(key, key), *RELATED.get(key, ())}
            assert any(word in problem for word in words), f"{key}: {problem}"
            assert "\n" not in problem
            refused.add(key)
            continue
        agreed.append((key, changed))
        if key in MADE_UP and key not in config:
            assert key in RIGHT.get(family, ()) or any(key in note for note in notes), key
    compare(folder, config, agreed, expected_BLV)
    assert {"rope_theta", "rms_norm_eps", "rope_type", "hidden_act"} <= refused
    assert {"initializer_range", "use_cache"} <= {key for key, _ in agreed}


def compare(
    folder: Path,
    config: dict[str, Any],
    agreed: list[tuple[str, dict[str, Any]]],
    expected_BLV: torch.Tensor,
) -> None:
    """Have ``transformers`` compute with all changes at once; one by one, if it refuses that."""
    left_out = {key for key, changed in agreed if key not in changed}
    for together in (
        config | {key: changed[key] for key, changed in agreed if key in changed},
        {key: value for key, value in config.items() if key not in left_out},
    ):
        write(folder, together)
        with suppress_refusals():
            assert (said(theirs(folder)) - expected_BLV).abs().max() <= TOLERANCE
            agreed = [(k, changed) for k, changed in agreed if changed.get(k) != together.get(k)]
    for key, changed in agreed:
        write(folder, changed)
        with suppress_refusals():
            difference = (said(theirs(folder)) - expected_BLV).abs().max()
            assert difference <= TOLERANCE, f"{key}={changed.get(key)} passed: {difference}"


RIGHT = {"qwen3_5": ("partial_rotary_factor",)}
"""Fields made up that happen to say what is so."""


RELATED = {
    # What follows from another field, or decides on it.
    "layer_types": ("sliding_window", "full_attention_interval"),
    "num_attention_heads": ("num_key_value_heads", "head_dim"),
    "hidden_size": ("head_dim",),
    "rope_scaling": ("rope_type",),
    "use_sliding_window": ("sliding_window",),
    "max_position_embeddings": ("original_max_position_embeddings",),
    "mscale": ("attention_factor",),
    "mscale_all_dim": ("attention_factor",),
    "factor": ("attention_factor",),
    "rope_theta": ("rope_type",),
    "rope_parameters": ("rope_t",),
}


class suppress_refusals(suppress):  # noqa: N801
    """What ``transformers`` itself refuses cannot be compared."""

    def __init__(self) -> None:
        super().__init__(KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)


PUBLISHED: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008], "hidden_act": "silu",
    "hidden_size": 96, "initializer_range": 0.02, "intermediate_size": 160, "mlp_bias": False,
    "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 8,
    "num_hidden_layers": 3, "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4096, "rope_type": "llama3",
    },
    "rope_theta": 400000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 512,
}  # fmt: skip
"""A ``config.json`` as Llama 3.2 has it, with other sizes."""
WITHOUT_SCALING = {k: v for k, v in PUBLISHED.items() if k != "rope_scaling"}

REMEDIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "llama 3.2": (
        PUBLISHED,
        "architecture.vocab_size=512 architecture.dim=96 architecture.hidden_dim=160 "
        "architecture.n_layers=3 architecture.n_heads=8 architecture.n_kv_heads=4 "
        "architecture.rope_theta=400000.0 architecture.rope_factor=32.0 "
        "architecture.rope_original_seq_len=4096 architecture.norm_eps=1e-06 "
        "architecture.tie_embeddings=true",
    ),
    "mistral without a window": (
        WITHOUT_SCALING | {"model_type": "mistral", "sliding_window": None},
        "architecture.rope_scaling=none",
    ),
    "mistral's window": (WITHOUT_SCALING | {"model_type": "mistral", "sliding_window": 64}, None),
    "mistral's window, left out": (WITHOUT_SCALING | {"model_type": "mistral"}, None),
    "another family": (PUBLISHED | {"model_type": "qwen2"}, None),
    "a bias": (PUBLISHED | {"attention_bias": True}, None),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_a_refusal_names_the_parameters_to_set(case: str) -> None:
    """Followed, they make the model the one that the file says."""
    theirs, expected = REMEDIES[case]
    architecture = {"name": "llama3", **SHAPE}
    sections = {"tokenizer": {"name": "bytes"}, "dataset": {"name": "stdlib"}}
    sections["optimizer"] = {"name": "AdamW"}
    run = parse({"architecture": architecture, "parallelism": {"name": "mesh"}, **sections})
    host, parts = Host.load(), parts_of(architecture)
    assert hf_config.disagreement(theirs, parts.hf_config or {}, parts.hf_defaults or {})
    found = remedy.settings(theirs, parts, run, host, VOCABULARY)
    if expected is None:
        assert found == ""
        return
    assert set(expected.split()) <= set(found.split()), found
    typed = dict(setting.removeprefix("architecture.").split("=") for setting in found.split())
    made = parts_of(architecture | {name: yaml.safe_load(value) for name, value in typed.items()})
    assert not hf_config.disagreement(theirs, made.hf_config or {}, made.hf_defaults or {})
