"""A folder of a tokenizer made elsewhere: one that reads every text, or a user's mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import damaged, is_one_sentence, json_values
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from atom.errors import UserError
from atom.plugin import TokenizerContext
from atom_tokenizers import hf
from atom_tokenizers.config import HuggingFace

pytestmark = pytest.mark.slow

BESIDE = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "added_tokens_decoder": {"260": {"content": "<s>", "special": True}},
        "add_prefix_space": False,
    },
    "special_tokens_map.json": {"bos_token": "<s>", "additional_special_tokens": ["<x>"]},
    "added_tokens.json": {"<x>": 262},
    "config.json": {"model_type": "llama"},
}


def sound() -> dict[str, Any]:
    """A small byte-level tokenizer, as its file has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=260, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat"], trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value, but for the many of a vocabulary."""
    if not isinstance(value, dict | list):
        return [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [at] if at else []
    for name, below in list(inner)[:20]:
        found += places(below, (*at, name))
    return found


@st.composite
def folders(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, bytes]:
    """The files of a folder: values replaced, bytes damaged, files left out."""
    files: dict[str, Any] = json.loads(json.dumps({"tokenizer.json": content} | BESIDE))
    if draw(st.booleans()):
        model = files.pop("tokenizer.json")["model"]
        files |= {"vocab.json": model["vocab"], "merges.txt": "#version: 0.2\nt h\nth e\n"}
        files["tokenizer_config.json"]["tokenizer_class"] = "GPT2Tokenizer"
    for name in draw(st.sets(st.sampled_from(sorted(BESIDE)), max_size=3)):
        files.pop(name)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(files)))
        if not isinstance(files[name], dict) or not (ways := places(files[name])):
            continue
        *way, last = draw(st.sampled_from(ways))
        holder = files[name]
        for key in way:
            holder = holder[key]
        holder[last] = draw(json_values)
    written = {
        name: value.encode() if isinstance(value, str) else json.dumps(value).encode()
        for name, value in files.items()
    }
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(written)))
        written[name] = draw(damaged(written[name]))
    return written


def test_tokenizer_folder(fuzz: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    context = TokenizerContext(documents=lambda: iter(()), digest="0", cache=tmp_path / "cache")

    def check(files: dict[str, bytes]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            prepared = hf.prepare(HuggingFace(path=folder), context)
        except UserError as error:
            is_one_sentence(error)
            return
        assert prepared.vocab_size > 0
        assert all(path.is_file() for path in prepared.files.values())

    content = sound()
    fuzz(folders(content), check)
