"""Parameters of components that nothing would come of are refused, and are marked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel, ValidationError

from atom.errors import UserError
from atom.plugin import ArchitectureContext
from atom.recipe.idle import Idle
from atom.registry.host import Host, resolve
from atom.testing import matrix

REFUSED = {
    # what is typed: the parameter, and the one that leaves it without effect
    "architecture.rope_factor=4.5": "rope_scaling=none",
    "architecture.rope_low_freq_factor=1.5": "rope_scaling=none",
    "architecture.rope_original_seq_len=64": "rope_scaling=none",
    "architecture.multiple_of=32 architecture.hidden_dim=384": "hidden_dim=384",
    "architecture.rope_original_seq_len=64 architecture=gpt_oss_tiny architecture.rope_factor=1": (
        "rope_factor=1.0"
    ),
    "architecture.mscale=1.5 architecture=deepseek_v3_tiny": "rope_factor=1.0",
    "architecture.conv_kernel_size=3 architecture=qwen3_5_tiny "
    "architecture.full_attention_interval=1": "full_attention_interval=1",
    "tokenizer.min_frequency=3 tokenizer=bpe tokenizer.vocab_size=258": "vocab_size=258",
    "launcher.check_links=true launcher=slurm launcher.check_nodes=false": "check_nodes=false",
    "launcher.store=s3 launcher=skypilot": "bucket=null",
}
TAKEN = (
    "architecture.rope_factor=8",  # the default
    "architecture.rope_factor=4 architecture.rope_scaling=llama",
    "architecture=llama3_8b architecture.rope_scaling=none",  # what its file sets
)


@pytest.mark.slow
@pytest.mark.parametrize("typed", REFUSED)
def test_a_parameter_without_effect_is_refused(
    forked: Callable, tmp_path: Path, typed: str
) -> None:
    tokenizer = () if "tokenizer=" in typed else ("tokenizer=bytes",)
    result = forked("train", *tokenizer, "device=cpu", *typed.split(), cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    first = typed.split()[0]
    kind = first.partition(".")[0]
    assert result.stderr.startswith(f"atom: {first} (command line): has no effect with "), (
        result.stderr
    )
    assert f" {kind}.{REFUSED[typed]}; valid: leave it out" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", TAKEN)
def test_what_has_an_effect_or_was_not_typed_is_taken(
    forked: Callable, tmp_path: Path, typed: str
) -> None:
    # What follows is refused.
    asked = (*typed.split(), "tokenizer=bytes", "dataset=local", "dataset.path=nowhere")
    result = forked("train", *asked, cwd=tmp_path)
    assert result.stderr.startswith("atom: dataset.path=nowhere"), result.stderr


# ---------------------------------------------------------------------------- all of them

HOST = Host.load()
TINIES = matrix.architectures(HOST)
OTHERWISE: dict[str, dict[str, Any]] = {
    "llama3_tiny": {"rope_scaling": "llama", "hidden_dim": 384},
    "gpt_oss_tiny": {"rope_factor": 1},
    "deepseek_v3_tiny": {"rope_factor": 4, "n_dense_layers": 0},
    "qwen3_5_tiny": {"full_attention_interval": 1},
    "qwen3_5_tiny_moe": {"full_attention_interval": 1},
}
"""Values that other parameters depend on, beside those of the options themselves."""


def others(field: Any, value: Any) -> Iterator[Any]:
    """Yield values that a parameter may have beside ``value``."""
    options = {
        option for one in (field.annotation, *get_args(field.annotation)) for option in [one]
    }
    if get_origin(field.annotation) is Literal:
        yield from (one for one in get_args(field.annotation) if one != value)
    elif field.annotation is bool:
        yield not value
    elif value is None:
        yield from (2.0, 3.0) if float in options else (640, 1024, 4, 2)
    elif isinstance(value, float):
        yield from (value * 2, value / 2)
    else:
        yield from (value * 2 or 1, value + 1, value + 2, value // 2, value - 1)


def made(model: type[BaseModel], build: Callable, parameters: dict[str, Any]) -> tuple[str, Any]:
    """Return what an architecture says of its model, and that model's config."""
    parts = build(model(**parameters), ArchitectureContext(vocab_size=320, seq_len=64))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(parts.model)), parts.model


def tensors(config: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a model as it starts."""
    model = config.build()
    torch.manual_seed(0)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return dict([*model.named_parameters(), *model.named_buffers()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name in TINIES
        for setting in ({}, *({key: value} for key, value in OTHERWISE.get(name, {}).items()))
    ],
)
def test_every_parameter_changes_the_model_or_is_marked(name: str, setting: dict[str, Any]) -> None:
    section = TINIES[name] | {"n_layers": 2} | setting
    if name.startswith("qwen3_5"):
        section = section | {"full_attention_interval": 2} | setting
    component = HOST.find("architecture", section["name"], key="architecture.name")
    model = resolve(component.declaration.config, component)
    build = resolve(component.declaration.build, component)
    parameters = {key: value for key, value in section.items() if key != "name"}
    whole = model(**parameters)
    before, config = made(model, build, parameters)
    marked = 0
    for key, field in model.model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, Idle)]
        changed = []
        for value in others(field, getattr(whole, key)):
            with suppress(UserError, ValidationError):
                changed.append(made(model, build, parameters | {key: value}))
        assert changed, f"{key} has no other value here"
        if not any(mark.because(whole) for mark in marks):
            assert any(after != before for after, _ in changed), f"{key} does nothing, unmarked"
            continue
        marked += 1
        one, other = tensors(config), tensors(changed[0][1])
        assert one.keys() == other.keys()
        same = all(torch.equal(one[tensor], other[tensor]) for tensor in one)
        assert same, f"{key} is marked, and does something"
    assert marked or not setting or "rope_scaling" in setting or setting.get("rope_factor") == 4
