"""What the package says of itself, without torch."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

import atom_tokenizers

DECLARED = {tokenizer.name: tokenizer for tokenizer in atom_tokenizers.atom_tokenizers()}
CONF = Path(atom_tokenizers.__file__).parent / "conf" / "tokenizer"


def pointed_to(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", ["hf", "bytes", "bpe"])
def test_the_group_file_has_every_parameter_with_its_default(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    parameters = yaml.safe_load(text)
    assert parameters.pop("name") == name
    reference = DECLARED[name].config
    assert reference is not None
    fields = pointed_to(reference).model_fields  # type: ignore[attr-defined]
    assert parameters == {
        key: "???" if field.is_required() else field.default for key, field in fields.items()
    }
