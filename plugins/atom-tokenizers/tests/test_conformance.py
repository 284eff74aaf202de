"""The tokenizers keep the promises of their kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from atom.testing import conformance

pytestmark = pytest.mark.slow

BOS, EOS = "<|bos|>", "<|eos|>"


def like_llama(folder: Path) -> dict[str, str]:
    """Byte-level, specials after the vocabulary, BOS by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"a##b the cat sat on the mat {BOS} {EOS}"] * 3, trainer)
    tokenizer.add_special_tokens([BOS, EOS, "<|python|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return saved(tokenizer, folder, bos_token=BOS, eos_token={"content": EOS, "lstrip": False})


def like_t5(folder: Path) -> dict[str, str]:
    """The specials are pieces of the vocabulary, and NFKC makes more of them."""
    pieces = ["<unk>", "</s>", "▁", "the", "<", "/", "s", ">"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return saved(tokenizer, folder, eos_token="</s>", unk_token="<unk>")


def saved(tokenizer: Tokenizer, folder: Path, **config: object) -> dict[str, str]:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return {"path": str(folder)}


TestBytes = conformance("tokenizer:bytes")
TestBpe = conformance("tokenizer:bpe")
TestHuggingFace = conformance("tokenizer:hf").having(sample=like_llama)
TestHuggingFaceLossy = conformance("tokenizer:hf").having(
    sample=like_t5, lossy="it knows eight pieces, and NFKC changes characters"
)
