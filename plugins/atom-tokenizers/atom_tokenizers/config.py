"""Parameters of the tokenizers."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from atom.recipe.idle import Idle


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


AddedToken = Annotated[str, Field(min_length=1, max_length=1024)]


def _text(path: object) -> object:
    return str(path) if isinstance(path, Path) else path


class HuggingFace(_Parameters):
    """An existing tokenizer."""

    path: Annotated[str, BeforeValidator(_text), Field(min_length=1)] = Field(
        description="a folder with tokenizer.json, or with vocab.json and merges.txt; or the "
        "tokenizer.json itself, with the other files beside it; a path, or a URL such as "
        "s3://BUCKET/FOLDER"
    )
    added_tokens: list[AddedToken] = Field(
        default=[],
        max_length=65536,
        description="special tokens to add if it lacks them, such as those of a chat template; "
        "they get the next ids, and initial weights get rows for them",
    )

    @field_validator("added_tokens")
    @classmethod
    def _no_token_twice(cls, tokens: list[str]) -> list[str]:
        if len(set(tokens)) < len(tokens):
            twice = next(token for token in tokens if tokens.count(token) > 1)
            raise ValueError(f"{twice} is named twice")
        return tokens


class Bytes(_Parameters):
    """Ids 0 to 255 are the byte values, 256 begins and 257 ends a document."""

    pad_to: int = Field(
        default=64,
        ge=1,
        le=65536,
        description="the vocabulary of 258 ids is rounded up to a multiple of this, so that "
        "tensor parallelism can divide it",
    )

    @property
    def vocab_size(self) -> int:
        return -(-258 // self.pad_to) * self.pad_to


class Bpe(_Parameters):
    """The size of a BPE, and the amount of text to train it on."""

    vocab_size: int = Field(
        default=2048,
        ge=258,
        le=1 << 20,
        description="number of ids: the 256 byte values, 2 special tokens, and merges",
    )
    train_bytes: Annotated[int, Idle("vocab_size", 258)] = Field(
        default=8 << 20,
        ge=1,
        description="bytes of UTF-8 to train on, from the first documents of the dataset",
    )
    min_frequency: Annotated[int, Idle("vocab_size", 258)] = Field(
        default=2, ge=1, description="minimum number of occurrences of a pair to merge"
    )
