"""Define the result of a validation set, as a row of ``metrics.jsonl`` holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from atom.io.numbers import decimal

_KNOWN = frozenset({"loss", "perplexity", "bits_per_byte", "tokens", "bytes", "data", "examples"})

LOSSES = ("loss", "perplexity", "bits_per_byte")
"""The results that can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """The result of one set. Non-finite floats are ``null`` in JSON, and NaN when read back."""

    loss: float
    """Mean cross-entropy per token of text, in nats. Special tokens are not counted."""

    tokens: int
    """Tokens of text that were predicted."""

    bytes: int | None = None
    """Bytes of UTF-8 of these tokens. None, and absent from the JSON, if the tokenizer does not
    tell."""

    data: str | None = None
    """Digest of the sequences, 16 hexadecimal digits; the same on every layout."""

    examples: int | None = None
    """Examples that the loss is a mean over, if it is the objective's own. None, and absent from
    the JSON, if it is a mean over tokens."""

    values: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Values of the objective beside the loss: means over the examples."""

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite if that exceeds the range of a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """The loss of all tokens in bits, divided by their bytes; None if those are unknown."""
        if not self.bytes:
            return None
        return self.loss / math.log(2) * (self.tokens / self.bytes)

    def numbers(self) -> dict[str, float]:
        """Return what is logged: the loss and what follows from it, by name."""
        if self.examples is not None:
            own = {"loss": self.loss, **self.values}
            return own | {"examples": self.examples, "tokens": self.tokens}
        found = {"loss": self.loss, "perplexity": self.perplexity}
        if (bits := self.bits_per_byte) is not None:
            found["bits_per_byte"] = bits
        return found | {"tokens": self.tokens}

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        values = self.numbers() | {"bytes": self.bytes, "data": self.data}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, value: object) -> SetResult:
        """Return the result in plain data; other keys are ignored.

        Raises:
            ValueError: it is no result.
        """
        if not isinstance(value, dict):
            raise ValueError("a result of validation is not a JSON object")
        loss, tokens, size = (value.get(name) for name in ("loss", "tokens", "bytes"))
        data = value.get("data")
        counts = [tokens, *([] if size is None else [size])]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a result of validation has no tokens")
        if not (loss is None or (isinstance(loss, int | float) and not isinstance(loss, bool))):
            raise ValueError("a result of validation has no loss")
        if not (data is None or isinstance(data, str)):
            raise ValueError("the data of a result of validation is no digest")
        loss = math.nan if loss is None else float(loss)
        examples, values = value.get("examples"), {}
        if examples is not None:
            if type(examples) is not int or examples < 0:
                raise ValueError("a result of validation has no examples")
            values = {
                str(name): math.nan if number is None else float(number)
                for name, number in value.items()
                if name not in _KNOWN and (number is None or type(number) in (int, float))
            }
        return cls(
            loss=loss,
            tokens=int(tokens or 0),
            bytes=size,
            data=data,
            examples=examples,
            values=values,
        )

    def __str__(self) -> str:
        if self.examples is not None:
            told = ("loss", self.loss), *self.values.items()
            return " ".join(f"{name} {decimal(value, 4)}" for name, value in told)
        bits = self.bits_per_byte
        tail = "" if bits is None else f" bits/byte {decimal(bits, 4)}"
        return f"loss {decimal(self.loss, 4)} ppl {decimal(self.perplexity, 2)}{tail}"


def read(value: object) -> dict[str, SetResult]:
    """Return the results of a row by set.

    Raises:
        ValueError: the value is no such mapping.
    """
    if not isinstance(value, dict):
        raise ValueError("validation is not a JSON object")
    return {str(name): SetResult.from_json(result) for name, result in value.items()}


def scalars(results: Mapping[str, SetResult]) -> Iterator[tuple[str, float]]:
    """Yield (``validation/SET/VALUE``, value), for trackers."""
    for name, result in results.items():
        for what, value in result.numbers().items():
            yield f"validation/{name}/{what}", value
