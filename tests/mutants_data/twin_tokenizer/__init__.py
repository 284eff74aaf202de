"""A tokenizer that keeps every promise of its kind."""

from atom.plugin import Tokenizer, hookimpl


@hookimpl
def atom_tokenizers():
    yield Tokenizer(
        name="twin_tokenizer",
        summary="an id a character",
        config="twin_tokenizer.config:Config",
        prepare="twin_tokenizer.prepare:prepare",
        build="twin_tokenizer.build:build",
    )
