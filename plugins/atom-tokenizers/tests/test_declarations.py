"""What the package says of itself, without torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

import atom_tokenizers
from atom.plugin import ENTRY_POINT_GROUP, Tokenizer

DECLARED = {tokenizer.name: tokenizer for tokenizer in atom_tokenizers.atom_tokenizers()}
CONF = Path(atom_tokenizers.__file__).parent / "conf" / "tokenizer"


def pointed_to(reference: str) -> object:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_the_entry_point_leads_here() -> None:
    found = [e for e in entry_points(group=ENTRY_POINT_GROUP) if e.value == "atom_tokenizers"]
    assert [entry.load() for entry in found] == [atom_tokenizers]


@pytest.mark.parametrize("name", ["hf", "bytes", "bpe"])
def test_every_reference_exists(name: str) -> None:
    tokenizer: Tokenizer = DECLARED[name]
    assert tokenizer.config is not None
    assert callable(pointed_to(tokenizer.prepare))
    assert callable(pointed_to(tokenizer.build))
    fields = pointed_to(tokenizer.config).model_fields  # type: ignore[attr-defined]
    assert all(field.description for field in fields.values())


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


def test_declaring_and_preparing_import_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import atom_tokenizers
list(atom_tokenizers.atom_tokenizers())
heavy = {"torch", "torchtitan", "transformers"}
assert not (heavy | {"tokenizers"}) & set(sys.modules), "declaring"
from atom.plugin import Document, TokenizerContext
from atom_tokenizers import bpe, byte_level, hf
from atom_tokenizers.config import Bpe, Bytes, HuggingFace
context = TokenizerContext(
    documents=lambda: iter([Document("the cat", "0")]), digest="", cache=Path(sys.argv[1])
)
byte_level.prepare(Bytes(), context)
files = bpe.prepare(Bpe(vocab_size=258), context).files
hf.prepare(HuggingFace(path=files["tokenizer.json"]), context)
assert not heavy & set(sys.modules), "preparing"
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
