"""The model that is trained is the one that was asked for, whatever divides it among ranks."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.errors import UserError
from atom.host import Host
from atom.launch.child import call
from atom.plan.device import named
from atom.run import DEGREES, Run, parse
from atom.select import select
from atom.testing import matrix
from atom.titan import checks, pretend, trainer_config
from atom.titan.preflight import preflight

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=6",
    "device=cpu",
    "architecture.dim=64",
    "metrics=none",
)
TP = "parallelism.tensor_parallel_degree=2"
SHARD = "parallelism.data_parallel_shard_degree"

REFUSED = {
    # what is asked for: what is said
    # Each of these trained a model of one more row.
    "architecture=olmo2_tiny architecture.hidden_dim=383 parallelism=tp": (
        TP,
        "must divide architecture.hidden_dim=383, dimension 0 of layers.0.feed_forward.w1.weight",
    ),
    "architecture=qwen3_tiny architecture.hidden_dim=383 parallelism=tp": (
        TP,
        "architecture.hidden_dim=383",
    ),
    "architecture=deepseek_v3_tiny architecture.dense_hidden_dim=383 parallelism=ep_tp": (
        TP,
        "architecture.dense_hidden_dim=383",
    ),
    "architecture=qwen3_5_tiny_moe architecture.shared_hidden_dim=129 parallelism=ep_tp": (
        TP,
        "architecture.shared_hidden_dim=129",
    ),
    "architecture=olmo2_tiny architecture.hidden_dim=383 parallelism=auto launch.ranks=2 "
    "parallelism.tensor_parallel_degree=2": ("architecture.hidden_dim=383",),
    # Each of these failed on every rank.
    "architecture=qwen3_tiny_moe architecture.num_experts=2 architecture.top_k=1 parallelism=fsdp "
    "launch.ranks=3": (f"{SHARD}=3", "2 experts", "architecture.moe_hidden_dim=128"),
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", REFUSED)
def test_a_size_that_does_not_divide_is_named(atom: Command, tmp_path: Path, asked: str) -> None:
    done = atom("train", *TINY, *asked.split(), "run.dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert all(word in sentence for word in REFUSED[asked]), sentence
    assert not list(tmp_path.iterdir())


def wider(model: torch.nn.Module, **_layout: Any) -> torch.nn.Module:
    model.weight = torch.nn.Parameter(torch.empty(6, 4))
    return model


def renamed(model: torch.nn.Module, **_layout: Any) -> torch.nn.Module:
    model.other, model.weight = model.weight, None  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("strategy", "says"),
    [(wider, r"weight is \[6, 4\], and was \[5, 4\]"), (renamed, "weight is gone")],
)
def test_a_rank_refuses_a_strategy_that_makes_another_model(
    strategy: Callable[..., torch.nn.Module], says: str
) -> None:
    finished = trainer_config._finished(strategy, 0, "cpu")
    with pytest.raises(UserError, match=says):
        finished(torch.nn.Linear(4, 5, bias=False))


# ---------------------------------------------------------------------------- all of them

HOST = Host.load()
TINIES = matrix.architectures(HOST)
EXPERTS = ("deepseek", "gpt_oss", "kimi", "moe", "_a")
WIDE = [
    name
    for name in matrix._options(HOST, "architecture")
    if "tiny" not in name and any(word in name for word in EXPERTS)
]
LAYOUTS = {
    "fsdp_3": {"data_parallel_shard_degree": 3},
    "tp": {"data_parallel_shard_degree": 1, "tensor_parallel_degree": 2},
    "fsdp_ep_tp": {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 2,
    },
}


def planned(architecture: dict[str, Any], layout: dict[str, int], **training: int) -> Run:
    return parse(
        {
            "dry_run": True,
            "device": "h100",
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"} | layout,
            "training": {"seq_len": 64, "disable_cuda_graphs": True} | training,
        }
    )


def put_together(run: Run) -> tuple[Any, int]:
    """Return the ``Trainer.Config`` of a run and the number of its ranks."""
    selection, place = select(run, HOST), Path("nowhere")
    ranks = math.prod(run.parallelism.parameters.get(name, 1) for name in DEGREES)
    ready = preflight(
        *(run, selection, HOST, place), vocab_size=320, joined=ranks, planned=named("h100")
    )
    config = trainer_config.trainer_config(ready.run, selection, HOST, place)
    checks.check_together(config)
    return config, ranks


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all ranks' parameters together, which each DTensor knows."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): tuple(parameter.shape)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def outcomes(architecture: dict[str, Any], layout: dict[str, int]) -> dict[str, str]:
    """Make each size of the architecture odd by itself; return what becomes of each such run."""
    found: dict[str, str] = {}
    ranks = math.prod(layout.get(name, 1) for name in DEGREES)
    with pretend.pretending(0, ranks):
        dims = None
        for name, size in architecture.items():
            if type(size) is not int or name == "max_seq_len":
                continue
            step = 8 if size % 8 == 0 and "moe" in name else 1
            run = planned(architecture | {name: size + step}, layout, global_batch_size=12)
            try:
                config, _ = put_together(run)
                dims = dims or pretend.mesh(config, ranks)
                (part,) = pretend.model_parts(config, dims)
            except UserError as error:
                found[name] = error.sentence()
                continue
            with torch.device("meta"):
                whole = config.model_spec.model.build()
            found[name] = "same" if shapes(part) == shapes(whole) else "another"
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name in TINIES
        for layout in LAYOUTS
        if "num_experts" in TINIES[name] or layout == "tp"
    ],
)
def test_no_layout_trains_a_larger_model(name: str, layout: str) -> None:
    """With each size odd in its turn: the same shapes as on one rank, or a sentence with a key."""
    shorter = {"n_layers": 2}
    if name.startswith("qwen3_5"):
        shorter["full_attention_interval"] = 2
    # torch keeps meshes for the life of a process.
    found = call(partial(outcomes, TINIES[name] | shorter, LAYOUTS[layout]))
    for size, said in found.items():
        assert said == "same" or said.startswith(("architecture.", "parallelism.", "training.")), (
            size,
            said,
        )
    assert "same" in found.values()
    if layout == "tp" and "hidden_dim" in found:
        assert any(
            said.startswith("parallelism.tensor_parallel_degree=2") for said in found.values()
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
def test_experts_over_512_ranks_are_divided_or_told_why_not(name: str) -> None:
    """It was a bug of torch's words in a dry run, and a failure of every rank in a run."""
    architecture = matrix._options(HOST, "architecture")[name]
    for layout in (
        {"data_parallel_shard_degree": 512},
        {"data_parallel_shard_degree": 512, "expert_parallel_degree": 8},
    ):
        said, config, ranks = "", None, 0
        try:
            config, ranks = put_together(planned(architecture, layout, global_batch_size=512))
        except UserError as error:
            said = error.sentence()
        if config is None:
            assert said.startswith("parallelism.data_parallel_shard_degree=512: FSDP divides")
            continue
        with torch.device("meta"):
            model = config.model_spec.model.build()
        pretend.check(config, model, ranks)
