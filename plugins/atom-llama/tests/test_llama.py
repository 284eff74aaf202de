"""The family is torchtitan's own, to the last parameter but the RoPE of Llama 3.2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torchtitan.models.llama3 import llama3_configs

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom_llama.build import llama3
from atom_llama.config import Llama3

CONF = Path(__file__).parents[1] / "atom_llama/conf/architecture"
SIZES = {
    "llama3_1b": "1B",
    "llama3_3b": "3B",
    "llama3_8b": "8B",
    "llama3_70b": "70B",
    "llama3_405b": "405B",
}


def parameters(option: str) -> Llama3:
    section = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert section.pop("name") == "llama3"
    return Llama3.model_validate(section)


@pytest.mark.parametrize("option", SIZES)
def test_size_is_torchtitans(option: str) -> None:
    context = ArchitectureContext(vocab_size=128256, seq_len=8192)
    ours = llama3(parameters(option), context).model.to_dict()
    theirs = llama3_configs[SIZES[option]](attn_backend="flex").to_dict()
    if option in ("llama3_1b", "llama3_3b"):
        # The published configs of Llama 3.2 say 32, torchtitan has 3.1's factor.
        for layer in theirs["layers"]:
            layer["attention"]["rope"]["scaling_factor"] = 32.0
    # Initialisers print with an address; all else must be the same.
    assert _without_addresses(ours) == _without_addresses(theirs)


def test_vocabulary_follows_the_tokenizer_and_may_be_larger() -> None:
    tiny = parameters("llama3_tiny")
    context = ArchitectureContext(vocab_size=1000, seq_len=256)
    assert llama3(tiny, context).model.vocab_size == 1000
    wider = tiny.model_copy(update={"vocab_size": 1024})
    assert llama3(wider, context).model.lm_head.out_features == 1024
    with pytest.raises(UserError, match=r"architecture\.vocab_size=999"):
        llama3(tiny.model_copy(update={"vocab_size": 999}), context)


def _without_addresses(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_addresses(item) for item in value]
    return value.partition(" at 0x")[0] if isinstance(value, str) else value
