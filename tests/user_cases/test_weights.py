"""Weights to start from: of this model and of no other, read from the files that hold them."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from atom.plugin import ModelParts
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing.models import logits
from atom.titan import saved_model, translate
from atom.titan.checkpoint import hugging_face_reader as hf_reader
from atom.titan.hugging_face import config as hf_config
from atom.titan.hugging_face import remedy
from atom.titan.hugging_face import weights as hf_weights
from atom.titan.trainer_config import model_parts

TOLERANCE = 1e-4
"""|difference in a logit|, in float32."""

VOCABULARY = 320
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
MIXTURE = {"moe_hidden_dim": 32, "num_experts": 8, "top_k": 2, "load_balance_coeff": None}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {
        "name": "llama3", **SHAPE, "rope_factor": 32.0, "rope_low_freq_factor": 0.5,
        "rope_high_freq_factor": 3.0, "rope_original_seq_len": 16,
    },
    "llama3, tied": {
        "name": "llama3", **SHAPE, "rope_scaling": "none", "tie_embeddings": True,
        "norm_eps": 1e-2, "hidden_dim": 96,
    },
    "qwen3": {"name": "qwen3", **SHAPE, "head_dim": 16, "hidden_dim": 128, "norm_eps": 1e-2},
    "qwen3_moe": {"name": "qwen3_moe", **SHAPE, "head_dim": 16, **MIXTURE},
    "olmo2": {"name": "olmo2", **SHAPE, "hidden_dim": 128},
    "gpt_oss": {"name": "gpt_oss", **SHAPE, "head_dim": 16, "sliding_window": 8, **MIXTURE,
                "norm_eps": 1e-2},
    "deepseek_v3": {
        "name": "deepseek_v3", "dim": 64, "n_layers": 2, "n_dense_layers": 1, "n_heads": 4,
        "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "dense_hidden_dim": 128, "moe_hidden_dim": 32, "num_experts": 8,
        "num_shared_experts": 1, "top_k": 2, "rope_factor": 40.0, "mscale": 0.7,
        "num_expert_groups": 4, "num_limited_groups": 2,
    },
    "qwen3_5": {
        "name": "qwen3_5", **SHAPE, "n_layers": 4, "hidden_dim": 128, "head_dim": 16,
        "rotary_dim": 8, "n_key_heads": 2, "n_value_heads": 4, "key_head_dim": 16,
        "value_head_dim": 16,
    },
}  # fmt: skip
LLAMA = FAMILIES["llama3"]

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


@pytest.fixture(scope="module", autouse=True)
def transformers_without_fla() -> None:
    """Where ``transformers`` finds ``fla``, it takes kernels that need a GPU, on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        with suppress(ModuleNotFoundError):
            importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")


def parts_of(architecture: dict[str, Any]) -> ModelParts:
    run = parse(
        {
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
        }
    )
    training = translate.training(run.training, "cpu")
    parts = model_parts(select(run, Host.load()), VOCABULARY, 64)
    saved_model.on_one_rank(parts, training)
    return parts


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def theirs(folder: Path) -> Any:
    """Return the model of ``transformers`` in a folder, its weights all found there."""
    import transformers

    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not found["missing_keys"]
    return model


IDS_BL = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def said(model: Any) -> torch.Tensor:
    return model(IDS_BL).logits


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


def check(parts: ModelParts, folder: Path) -> tuple[str | None, list[str]]:
    return hf_weights.check(parts, saved_model.adapter(parts, "it"), folder)


@torch.no_grad()
def ours(parts: ModelParts, folder: Path) -> torch.Tensor:
    """Return the logits of ATOM's model with the weights of ``folder``."""
    model: Any = saved_model.on_meta(parts.model)
    model.to_empty(device="cpu")
    model.init_weights(buffer_device=None)
    adapter = saved_model.adapter(parts, "it")
    loaded = hf_reader.load(model.state_dict(), adapter, folder, alone=True)
    model.load_state_dict(loaded, strict=False)
    return logits(model.eval(), IDS_BL)


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


# ---------------------------------------------------------------------------- files


def _stray(folder: Path) -> str:
    """Beside the index lies a file of other values, as of an adapter or a former save."""
    first = sorted(folder.glob("model-*.safetensors"))[0]
    zeros = {name: torch.zeros_like(value) for name, value in load_file(first).items()}
    save_file(zeros, folder / "zz_old.safetensors", metadata={"format": "pt"})
    return "zz_old.safetensors"


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def _rewrite(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    content = _index(folder)
    change(content["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _change(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change the tensors of the file that holds ``name``."""

    def changed(folder: Path) -> None:
        file = folder / _index(folder)["weight_map"][name]
        content = load_file(file)
        change(content)
        save_file(content, file, metadata={"format": "pt"})

    return changed


NORM = "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def _twice(folder: Path) -> None:
    held = _index(folder)["weight_map"]
    other = next(file for file in held.values() if file != held[NORM])
    content = load_file(folder / other) | {NORM: torch.zeros(64)}
    save_file(content, folder / other, metadata={"format": "pt"})


def _second_model(folder: Path) -> None:
    save_file({NORM: torch.zeros(64)}, folder / "model.safetensors")


def _outside(folder: Path) -> None:
    save_file({NORM: torch.zeros(64)}, folder.parent / "outside.safetensors")
    _rewrite(folder, lambda places: places.update({NORM: "../outside.safetensors"}))


def _no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def _named_twice(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(f'"{NORM}":', f'"{NORM}": "x", "{NORM}":'))


def _named_and_not_there(folder: Path) -> None:
    _rewrite(folder, lambda places: places.update({"model.layers.9.x": places[NORM]}))


def _there_and_not_named(folder: Path) -> None:
    _rewrite(folder, lambda places: places.pop(NORM) and None)


def _gone(folder: Path) -> None:
    (folder / _index(folder)["weight_map"][NORM]).unlink()


def _quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder, config | {"quantization_config": {"quant_method": "fp8"}})


def _another_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder, config | {"rms_norm_eps": 0.5})


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "a tensor in two files": (_twice, (NORM, "twice")),
    "an index and another whole model": (_second_model, ("model.safetensors and", "two models")),
    "a file outside of the folder": (_outside, ("../outside.safetensors", "no file of weights")),
    "parts without an index": (_no_index, ("neither model.safetensors nor",)),
    "a name twice in the index": (_named_twice, (NORM, "twice")),
    "a tensor that is not in its file": (_named_and_not_there, ("model.layers.9.x", "not")),
    "a tensor that the index leaves out": (_there_and_not_named, (NORM, "does not name")),
    "a file that is gone": (_gone, ("lacks model-",)),
    "an index of nothing": (lambda f: _rewrite(f, dict.clear), ("names no weights",)),
    "weights in eight bits": (
        _change(QUERY, lambda x: x.update({QUERY: x[QUERY].to(torch.float8_e4m3fn)})),
        (QUERY, "F8_E4M3"),
    ),
    "weights as whole numbers": (
        _change(QUERY, lambda x: x.update({QUERY: x[QUERY].to(torch.int8)})),
        (QUERY, "I8"),
    ),
    "a config of quantized weights": (_quantized, ("quantized (fp8)",)),
    "another norm": (_another_field, ("rms_norm_eps=0.5", "1e-05")),
}


def _weight(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    """Put a tensor into a folder of several files, or take it away."""

    def put(folder: Path) -> None:
        places = _index(folder)["weight_map"]
        file = places.get(name, places[NORM])
        content = load_file(folder / file)
        content.pop(name, None)
        if value is not None:
            content[name] = value
        save_file(content, folder / file, metadata={"format": "pt"})
        _rewrite(
            folder, lambda p: p.update({name: file}) if value is not None else p.pop(name) and None
        )

    return put


BAD_FOLDERS |= {
    "no output layer": (_weight("lm_head.weight", None), ("lm_head.weight", "missing")),
    "a bias that the architecture has not": (
        _weight("model.layers.0.self_attn.q_proj.bias", torch.ones(64)),
        ("q_proj.bias", "no place"),
    ),
    "a layer more": (_weight("model.layers.2.mlp.up_proj.weight", torch.ones(1)), ("no place",)),
    "other rows": (
        _weight("model.embed_tokens.weight", torch.ones(321, 64)),
        ("embed_tokens", "321", "320"),
    ),
}


def test_a_folder_that_is_not_just_the_models_weights(saved: Callable[..., Path]) -> None:
    parts = parts_of(LLAMA)
    good = saved(parts, max_shard_size="60KB")
    assert len(list(good.glob("model-*.safetensors"))) > 2
    for case, (damage, says) in BAD_FOLDERS.items():
        folder = good.with_name("bad")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        damage(folder)
        try:
            problem, _ = check(parts, folder)
        except ValueError as error:
            problem = str(error)
        assert problem is not None, f"{case}: passed"
        assert "\n" not in problem, case
        assert all(words in problem for words in says), f"{case}: {problem}"


def test_what_is_no_weight_of_the_model_is_left_out_and_told(saved: Callable[..., Path]) -> None:
    parts = parts_of(LLAMA)
    folder = saved(parts, max_shard_size="60KB")
    expected_BLV = said(theirs(folder))
    stray = _stray(folder)
    _weight("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8))(folder)
    assert check(parts, folder) == (None, [f"its {stray} is not read"])
    assert (ours(parts, folder) - expected_BLV).abs().max() <= TOLERANCE


def test_tied_weights_that_are_two(saved: Callable[..., Path]) -> None:
    parts = parts_of(FAMILIES["llama3, tied"])
    folder = saved(parts, max_shard_size="60KB")
    embedding = load_file(folder / _index(folder)["weight_map"]["model.embed_tokens.weight"])
    _weight("lm_head.weight", embedding["model.embed_tokens.weight"])(folder)
    assert check(parts, folder) == (None, [])
    _weight("lm_head.weight", embedding["model.embed_tokens.weight"] + 1)(folder)
    problem, _ = check(parts, folder)
    assert problem is not None
    assert "ties its embeddings" in problem


def test_weights_of_half_precision_are_what_they_say(saved: Callable[..., Path]) -> None:
    parts = parts_of(LLAMA)
    folder = saved(parts)
    expected_BLV = ours(parts, folder)
    halved = {name: x.bfloat16() for name, x in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    assert check(parts, folder) == (None, [])
    assert 0 < (ours(parts, folder) - expected_BLV).abs().max() < 0.5


def test_weights_that_are_no_numbers(saved: Callable[..., Path]) -> None:
    parts = parts_of(LLAMA)
    folder = saved(parts)
    content = load_file(folder / "model.safetensors")
    content[QUERY][3, 5] = torch.nan
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(hf_reader.NotFiniteError, match=QUERY):
        ours(parts, folder)


# ---------------------------------------------------------------------------- the command

TINY = {"multiple_of": 64, "rope_scaling": "none", "rope_theta": 10_000.0}
"""Of ``architecture=llama3_tiny``."""

T = (
    "architecture=llama3_tiny", "architecture.dim=64", "architecture.n_layers=2",
    "architecture.n_heads=4", "architecture.n_kv_heads=2", "tokenizer=bytes", "training.seq_len=64",
    "training.global_batch_size=4", "training.steps=1", "device=cpu", "metrics=none",
    "checkpoint.enable=true",
)  # fmt: skip


@pytest.mark.slow
def test_training_begins_from_what_the_index_names(
    atom: Any, saved: Callable[..., Path], rows: Any, tmp_path: Path
) -> None:
    """A stray file beside the index is told of, and is not what is trained; NaN stops the ranks."""
    folder = saved(parts_of(LLAMA | TINY), max_shard_size="60KB")
    start = f"checkpoint.initial_load=hf:{folder}"
    plain = atom("train", *T, start, "run.dir=plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "is not read" not in plain.stdout + plain.stderr
    stray = _stray(folder)
    found = atom("train", *T, start, "run.dir=stray", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"its {stray} is not read" in found.stdout + found.stderr
    (one,), (other,) = rows(tmp_path / "stray"), rows(tmp_path / "plain")
    assert (one["loss"], one["grad_norm"]) == (other["loss"], other["grad_norm"])

    config = json.loads((folder / "config.json").read_text())
    write(folder, config | {"rms_norm_eps": 0.5})
    refused = atom("train", *T, start, "run.dir=other", cwd=tmp_path)
    assert refused.returncode == 2
    assert "rms_norm_eps=0.5" in refused.stderr
    assert refused.stderr.count("\n") == 1
    again = atom("train", *T, "checkpoint.initial_load=plain", "architecture.rope_theta=1234.0",
                 "run.dir=other", cwd=tmp_path)  # fmt: skip
    assert again.returncode == 2
    assert "rope_theta" in again.stderr
    by_path = f"checkpoint.initial_load_path={folder}"
    engine = atom("train", *T, by_path, "checkpoint.initial_load_in_hf=true",
                  "run.dir=other", cwd=tmp_path)  # fmt: skip
    assert engine.returncode == 2, "torchtitan's own keys say the same"
    assert "rms_norm_eps=0.5" in engine.stderr
    assert not (tmp_path / "other").exists()

    write(folder, config)
    _change(QUERY, lambda x: x[QUERY].fill_(torch.nan))(folder)
    nan = atom("train", *T, start, "run.dir=holed", cwd=tmp_path)
    assert nan.returncode != 0
    assert QUERY in nan.stderr
    assert "this is a bug" not in nan.stderr
