"""Convert text to ids: Hugging Face tokenizers, plain bytes, or a BPE trained on the run's data."""

from collections.abc import Iterator

from atom.plugin import Tokenizer, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_tokenizers() -> Iterator[Tokenizer]:
    yield Tokenizer(
        name="hf",
        summary="a Hugging Face tokenizer from a folder",
        config="atom_tokenizers.config:HuggingFace",
        prepare="atom_tokenizers.hf:prepare",
        build="atom_tokenizers.ranks:from_files",
    )
    yield Tokenizer(
        name="bytes",
        summary="the 256 byte values of UTF-8, nothing to learn and nothing lost",
        config="atom_tokenizers.config:Bytes",
        prepare="atom_tokenizers.byte_level:prepare",
        build="atom_tokenizers.ranks:byte_level",
    )
    yield Tokenizer(
        name="bpe",
        summary="a byte-level BPE trained on the run's own dataset, once",
        config="atom_tokenizers.config:Bpe",
        prepare="atom_tokenizers.bpe:prepare",
        build="atom_tokenizers.ranks:from_files",
    )
