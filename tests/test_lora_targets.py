"""The layers that patterns choose, in models of several families, and the keys of adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCABULARY
from safetensors.torch import save_file

from atom.errors import UserError
from atom.plugin import ModelParts
from atom.recipe.lora import Lora
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.titan import saved_model
from atom.titan.lora import peft
from atom.titan.lora.adapt import adapt, freeze, left_out, names, trained, updated
from atom.titan.trainer_config import model_parts


def parts_of(family: str) -> ModelParts:
    names = {"tokenizer": "bytes", "optimizer": "AdamW", "dataset": "stdlib", "parallelism": "mesh"}
    sections = {name: {"name": value} for name, value in names.items()}
    run = parse({"architecture": FAMILIES[family]} | sections)
    found = model_parts(select(run, Host.load(), training=False), VOCABULARY, 64)
    saved_model.on_one_rank(found, SimpleNamespace(seq_len=64, mixed_precision_param="float32"))
    return found


def adapted(family: str, *targets: str) -> set[str]:
    """Return the layers that are adapted, in the first block."""
    parts = adapt(parts_of(family), Lora(rank=2, targets=list(targets)))
    model: Any = saved_model.on_meta(parts.model)
    freeze(model)
    learns = {name for name, each in model.named_parameters() if each.requires_grad}
    assert learns == {name for name, _ in trained(model)}
    found = {updated(name).removesuffix(".weight") for name in learns}
    assert found <= {name.removesuffix(".weight") for name in model.state_dict()}
    return {name.removeprefix("layers.0.") for name in found if name.startswith("layers.0.")}


QKV = {f"attention.qkv_linear.{name}" for name in ("wq", "wk", "wv")}
FEED_FORWARD = {f"feed_forward.{name}" for name in ("w1", "w2", "w3")}
CHOSEN = {
    "all": ("llama3", ["*"], QKV | {"attention.wo"} | FEED_FORWARD),
    "ends of names": ("llama3", ["wq", "wv"], QKV - {"attention.qkv_linear.wk"}),
    "a part of names": ("llama3", ["attention.*"], QKV | {"attention.wo"}),
    "whole names": ("llama3", ["layers.0.feed_forward.w2"], {"feed_forward.w2"}),
    "no routers, no experts": ("qwen3_moe", ["*"], QKV | {"attention.wo"}),
    "latent attention": (
        "deepseek_v3", ["attention.*"], {f"attention.{n}" for n in ("wq", "wkv_a", "wkv_b", "wo")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_patterns_choose_layers(name: str) -> None:
    family, targets, wanted = CHOSEN[name]
    assert adapted(family, *targets) == wanted


def test_kernels_that_leave_adapters_out_do_not_fit() -> None:
    """A kernel that fuses layers has another weight instead of theirs."""
    config = adapt(parts_of("llama3"), Lora(rank=2)).model
    model: Any = saved_model.on_meta(config)
    assert left_out(model, names(config)) is None
    model.layers["0"].feed_forward.w3 = torch.nn.Linear(64, 64, device="meta")
    operation, words = left_out(model, names(config)) or ("", "")
    assert operation == "feed_forward"
    assert words == "would leave out the adapter of layers.0.feed_forward.w3"


REFUSED = {
    "a typing error": ("wqq", "matches no linear layer; did you mean wq"),
    "a norm": ("ffn_norm", "matches layers.0.ffn_norm, which is no linear layer; valid: w1"),
    "an embedding": ("tok_embeddings", "matches tok_embeddings, which is no linear layer"),
    "the output layer": ("lm_head", "is the output layer, and adapters are of the other linear"),
    "experts": ("inner_experts", "which is no linear layer"),
    "a router": ("gate", "is the router of experts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_linear_layer_is_refused(name: str) -> None:
    target, words = REFUSED[name]
    with pytest.raises(UserError, match=r"lora\.targets\.1=") as error:
        adapted("qwen3_moe" if name in ("experts", "a router") else "llama3", "wq", target)
    assert words in error.value.sentence()


FILES = {
    "another rank": ({"r": 4}, {}, "lora.rank=2: ", "has r=4; valid: 4"),
    "another factor": ({"lora_alpha": 8}, {}, "lora.alpha=16.0: ", "valid: 8"),
    "other settings": ({"use_dora": True}, {}, "lora.adapter=", "has use_dora=True, which ATOM"),
    "another kind": ({"peft_type": "IA3"}, {}, "lora.adapter=", "of another kind than LORA"),
    "more layers": ({}, {"k_proj.lora_A": [2, 64]}, "lora.adapter=", "do not choose that layer"),
    "fewer layers": ({}, {"q_proj.lora_B": None}, "lora.adapter=", "q_proj.lora_B.weight, and the"),
    "another shape": ({}, {"q_proj.lora_B": [8, 2]}, "lora.adapter=", "needs [64, 2]"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_adapters_of_peft_are_refused(name: str, tmp_path: Path) -> None:
    settings, tensors, key, words = FILES[name]
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(usual | settings))
    layers = [f"base_model.model.model.layers.{n}.self_attn." for n in (0, 1)]
    shapes = {"q_proj.lora_A": [2, 64], "q_proj.lora_B": [64, 2]} | tensors
    content = {
        f"{layer}{name}.weight": torch.ones(shape)
        for layer in layers
        for name, shape in shapes.items()
        if shape is not None
    }
    save_file(content, tmp_path / "adapter_model.safetensors")
    parts = parts_of("llama3")
    converter = saved_model.adapter(parts, "llama3")
    lora = Lora(rank=2, targets=["wq"])
    model = saved_model.on_meta(adapt(parts, lora).model)
    runs = {name: tuple(each.shape) for name, each in trained(model)}
    with pytest.raises(UserError) as error:
        peft.check(tmp_path, lora, converter, runs)
    assert key in error.value.sentence()
    assert words in error.value.sentence()


LOADED = ("checkpoint.enable=true", "checkpoint.initial_load=hf:nowhere")
KEYS = {
    "no base": (["lora.rank=4", "checkpoint.enable=true"], "lora.rank=4", "no checkpoint.initial"),
    "nothing is saved": (["lora.rank=4", "checkpoint.enable=false"], "lora.rank=4", "not be saved"),
    "a negative rank": (["lora.rank=-1"], "lora.rank=-1", "valid: a whole number from 0"),
    "half a rank": (["lora.rank=0.5"], "lora.rank=0.5", "valid: a whole number from 0"),
    "no factor": (["lora.alpha=0"], "lora.alpha=0", "valid: a number above 0"),
    "no targets": (["lora.rank=4", "lora.targets=[]"], "lora.targets=[]", ""),
    "an empty target": (["lora.rank=4", "lora.targets=['']"], "lora.targets", "empty pattern"),
    "no adapters": (["lora.alpha=3"], "lora.alpha=3", "has no effect with lora.rank=0"),
    "a whole model": (
        ["lora.rank=4", *LOADED, "checkpoint.last_save_in_hf=true",
         "checkpoint.last_save_model_only=true"],
        "checkpoint.last_save_in_hf=true",
        "adapters alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_refused_without_torch(name: str, forked: Callable) -> None:
    words, key, reason = KEYS[name]
    result = forked("train", "tokenizer=bytes", "metrics=none", "run.dir=bad", *words)
    assert result.returncode == 2, result.stdout
    assert key in result.stderr, result.stderr
    assert reason in result.stderr
