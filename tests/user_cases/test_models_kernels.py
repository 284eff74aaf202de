"""What the table of kernels says computes, computes; and the loss is that of the model's logits."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.kernels.operations import OPERATIONS
from atom.plugin import Kernel
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing import matrix
from atom.titan import kernels
from atom.titan.trainer_config import model_parts, set_sharding

Command = Callable[..., subprocess.CompletedProcess[str]]

DECLARATIONS = """
from atom.plugin import Architecture, hookimpl

ATOM_INTERFACE = 1

@hookimpl
def atom_architectures():
    for name in ("capped", "capped_after", "normed"):
        yield Architecture(
            name=name,
            summary=name,
            config="atom_llama.config:Llama3",
            build=f"own_models.build:{name}",
        )
"""

BUILD = """
from dataclasses import dataclass

import torch
from torchtitan.config.override import derive
from torchtitan.models.common import Linear, RMSNorm
from torchtitan.models.llama3.model import Llama3Model

from atom_llama.build import llama3


class CappedLinear(Linear):
    @dataclass(kw_only=True, slots=True)
    class Config(Linear.Config):
        pass

    def forward(self, x):
        return torch.tanh(super().forward(x) / 0.5) * 0.5


class CappedModel(Llama3Model):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3Model.Config):
        pass

    def forward(self, *arguments, **named):
        return torch.tanh(super().forward(*arguments, **named) / 0.5) * 0.5


class DoubledNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x):
        return 2 * super().forward(x)


def capped(config, context):
    parts = llama3(config, context)
    parts.model.lm_head = derive(parts.model.lm_head, CappedLinear.Config)
    return parts


def capped_after(config, context):
    from dataclasses import replace

    parts = llama3(config, context)
    return replace(parts, model=derive(parts.model, CappedModel.Config))


def normed(config, context):
    parts = llama3(config, context)
    for layer in parts.model.layers:
        layer.attention_norm = derive(layer.attention_norm, DoubledNorm.Config)
    return parts
"""

TINY = (
    "architecture=llama3_tiny",
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=2",
    "device=cpu",
    "architecture.n_layers=1",
    "architecture.dim=32",
    "architecture.n_heads=2",
    "architecture.n_kv_heads=2",
    "metrics=none",
    "training.steps=1",
    "checkpoint.enable=false",
)


@pytest.fixture
def own(install: Callable[..., Path], atom: Command, tmp_path: Path) -> Command:
    """Train a model of a stranger's; give its name, a run folder and overrides."""
    site = install("own-models", {"__init__.py": DECLARATIONS, "build.py": BUILD})
    entry = site / "own_models-1.0.dist-info" / "entry_points.txt"
    entry.write_text("[atom]\nown_models = own_models\n")

    def run(name: str, place: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        return atom(
            *("train", *TINY, f"architecture.name={name}", f"run.dir={place}", *overrides),
            cwd=tmp_path,
            PYTHONPATH=str(site),
            TRITON_INTERPRET="1",
        )

    return run


REFUSED = {
    # model, override: what is said
    # Each of these trained, by a loss without the cap: 6.1988 for 5.9242.
    ("capped", "kernels.linear_cross_entropy=triton"): ("triton", "CappedLinear, is no plain"),
    ("capped", "kernels.linear_cross_entropy=liger"): ("liger", "CappedLinear, is no plain"),
    ("capped_after", "kernels.linear_cross_entropy=triton"): (
        "triton",
        "CappedModel has its own forward",
    ),
    # The cap was put on the hidden states.
    ("capped_after", "loss.num_chunks=4"): ("loss.num_chunks=4", "CappedModel has its own forward"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "override"), REFUSED)
def test_a_loss_that_leaves_out_what_the_model_does_is_refused(
    own: Command, tmp_path: Path, model: str, override: str
) -> None:
    done = own(model, "run", override)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert all(word in sentence for word in (*REFUSED[model, override], "valid:")), sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_in_pieces_an_output_layer_does_all_that_it_does(own: Command, tmp_path: Path) -> None:
    losses = []
    for pieces in (1, 4):
        done = own("capped", f"run{pieces}", f"loss.num_chunks={pieces}")
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = (tmp_path / f"run{pieces}" / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(row)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_the_table_says_how_many_nodes_a_kernel_replaces(own: Command) -> None:
    """Two of a block's norms are torchtitan's, and the model's last one."""
    done = own("normed", "run", "kernels.rms_norm=triton", "dry_run=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton: rms_norm (2 of 3)" in done.stdout


# ---------------------------------------------------------------------------- all of them

HOST = Host.load()
ARCHITECTURES = matrix.architectures(HOST)


def described(architecture: str) -> Any:
    """Return the model's config, its sharding set for two ranks that share experts, if any."""
    changed = {"n_layers": 2}
    if architecture.startswith("qwen3_5"):
        changed["full_attention_interval"] = 2
    run = parse(
        {
            "architecture": ARCHITECTURES[architecture] | changed,
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"},
        }
    )
    return model_parts(select(run, HOST), 320, 64).model


def built(config: Any) -> dict[str, tuple[type, ...]]:
    """Return the classes of each module and of those in it, by the module's name."""
    with torch.device("meta"):
        model = config.build()
    return {
        name: tuple(type(inner) for inner in module.modules())
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_said_of_a_kernel_is_what_is_built(architecture: str) -> None:
    """Every kernel that can be imported here: as many modules are of its class as are told, and a
    class of the model's own is never lost."""
    plain = described(architecture)
    expert = any(getattr(layer, "moe", None) is not None for layer in plain.layers)
    before = built(deepcopy(plain))
    compared = 0
    for component in HOST.components:
        kernel = component.declaration
        if not isinstance(kernel, Kernel) or kernel.override is None:
            continue
        place = OPERATIONS[kernel.operation].node
        if place is None or "torchtitan.models" not in place:
            continue
        try:
            importlib.import_module(kernel.override.partition(":")[0])
        except ImportError:
            continue
        module, _, name = place.partition(":")
        node = getattr(importlib.import_module(module), name)
        nodes = [name for name, classes in before.items() if issubclass(classes[0], node)]
        config = deepcopy(plain)
        layout = ParallelismConfig(expert_parallel_degree=2 if expert else 1)
        at_once = kernel.before_sharding or kernel.operation == "moe_dispatch"
        if not at_once:
            set_sharding(config, TrainingConfig(seq_len=64), layout)
        try:
            told = kernels.replace(config, [kernel])
            if at_once:
                set_sharding(config, TrainingConfig(seq_len=64, local_batch_size=1), layout)
            after = built(config)
        except (kernels.UnfitError, ImportError):
            continue
        changed = [name for name in nodes if after.get(name) != before[name]]
        if not changed:
            # The same class, told of another backend; dispatchers are no modules.
            assert kernel.name == "flex_flash" or kernel.operation == "moe_dispatch"
            continue
        replaced, there = told[kernel.operation]
        # Norms of queries and keys are one node that is built twice.
        assert 0 < replaced <= there <= len(nodes), kernel.name
        assert (replaced == there) == (len(changed) == len(nodes)), (kernel.name, told, changed)
        assert len(changed) >= replaced, (kernel.name, told, changed)
        for name in changed:
            old, new = before[name][0], after[name][0]
            assert old is node or issubclass(new, old), kernel.name
        compared += 1
    assert compared >= 4
