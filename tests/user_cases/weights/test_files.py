"""Weights are read from the files that hold them, all of them and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_weights import FAMILIES, TOLERANCE, check, ours, parts_of, said, theirs, write
from safetensors.torch import load_file, save_file

from atom.titan.checkpoint import hugging_face_reader as hf_reader

LLAMA = FAMILIES["llama3"]


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
        ("q_proj.bias", "unknown to this architecture"),
    ),
    "a layer more": (
        _weight("model.layers.2.mlp.up_proj.weight", torch.ones(1)),
        ("unknown to this architecture",),
    ),
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
