"""The model that is trained is the one that was asked for, whatever divides it among ranks."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.cli.new import make
from atom.errors import UserError
from atom.io.process import call
from atom.plan.device import named
from atom.plugin import PreparedTokenizer
from atom.recipe.run import DEGREES, Run, parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.testing import matrix, models
from atom.testing.installing import describe
from atom.titan import trainer_config
from atom.titan.checks import pretend
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
    # This was a bug of torch's words.
    "architecture=qwen3_30b_a3b parallelism=fsdp launch.ranks=512 dry_run=true": (
        f"{SHARD}=512",
        "128 experts",
        "architecture.moe_hidden_dim=768",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", REFUSED)
def test_a_size_that_does_not_divide_is_named(atom: Command, tmp_path: Path, asked: str) -> None:
    tiny = TINY
    if "launch.ranks=512" in asked:
        tiny = (*TINY[:2], "training.global_batch_size=512", "device=h100")
    done = atom("train", *tiny, *asked.split(), "run.dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert all(word in sentence for word in REFUSED[asked]), sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_a_new_architecture_starts_from_is_held_to_it(atom: Command, tmp_path: Path) -> None:
    make("architecture", "my-net", tmp_path / "my-net")
    describe(tmp_path / "my-net", "my-net")
    odd_width = ["architecture=my_net", "architecture.hidden_dim=383", "parallelism=tp"]
    place = tmp_path / "work"
    place.mkdir()
    done = atom("train", *TINY, *odd_width, cwd=place, PYTHONPATH=str(tmp_path / "my-net"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{TP} " in done.stderr
    assert "must divide architecture.hidden_dim=383, dimension 0 of layers.0." in done.stderr
    assert not list(place.iterdir())


def test_one_key_value_head_is_saved_and_goes_on(train: Callable, tmp_path: Path) -> None:
    """Parts of a fused projection are views of it where there is one head, and saving them in the
    background failed."""
    one_head = ("architecture.n_kv_heads=1", "checkpoint.interval=2")
    whole = train(tmp_path / "whole", *one_head, "training.steps=4")
    train(tmp_path / "parts", *one_head, "training.steps=2", "lr_scheduler.total_steps=20")
    parts = train(tmp_path / "parts", *one_head, "training.steps=4")
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]


def wider(model: torch.nn.Module, **_layout: Any) -> torch.nn.Module:
    model.weight = torch.nn.Parameter(torch.empty(6, 4))
    return model


def renamed(model: torch.nn.Module, **_layout: Any) -> torch.nn.Module:
    model.other, model.weight = model.weight, None  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("strategy", "says"),
    [(wider, r"weight is \[6, 4\], and was \[5, 4\]"), (renamed, "weight is missing")],
)
def test_a_rank_refuses_a_strategy_that_makes_another_model(
    strategy: Callable[..., torch.nn.Module], says: str
) -> None:
    finished = trainer_config._finished(strategy, 0, "cpu", frozen=False)
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
    "ddp": {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 1},
    "fsdp_3": {"data_parallel_shard_degree": 3},
    "hsdp": {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 3},
    "tp": {"data_parallel_shard_degree": 1, "tensor_parallel_degree": 2},
    "pp": {"data_parallel_shard_degree": 1, "pipeline_parallel_degree": 2},
    "cp": {"data_parallel_shard_degree": 1, "context_parallel_degree": 2},
    "fsdp_ep_tp": {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "expert_parallel_degree": 2,
    },
    "4d": {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "context_parallel_degree": 2,
    },
}
Shapes = dict[str, tuple[int, ...]]


def planned(architecture: dict[str, Any], layout: dict[str, int], **training: int) -> Run:
    return parse(
        {
            "dry_run": True,
            "device": "h100",
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh"} | layout,
            "training": {"seq_len": 64, "disable_cuda_graphs": True} | training,
        }
    )


def put_together(run: Run) -> tuple[Any, int]:
    """Return the ``Trainer.Config`` of a run and the number of its ranks."""
    selection, place = select(run, HOST), Path("nowhere")
    ranks = math.prod(run.parallelism.parameters.get(name, 1) for name in DEGREES)
    found = preflight.plan(
        *(run, selection, HOST, place),
        tokenizer=PreparedTokenizer(vocab_size=320),
        joined=ranks,
        planned=named("h100"),
    )
    preflight.checked(found)
    return found.config, ranks


def shapes(model: torch.nn.Module) -> Shapes:
    """Return the shapes of all ranks' parameters together, which each DTensor knows."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): tuple(parameter.shape)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def odd(architecture: dict[str, Any]) -> dict[str, int]:
    """Return for each size the next one that the architecture takes, together with the others."""
    together: dict[str, int] = {}
    for name, size in architecture.items():
        if type(size) is not int or name == "max_seq_len":
            continue
        # Experts are multiplied in groups, which takes widths of multiples of 8.
        eights = name == "moe_hidden_dim" or (name == "dim" and "num_experts" in architecture)
        for larger in range(size + (8 if eights else 1), 2 * size + 1):
            try:
                select(planned(architecture | together | {name: larger}, {}), HOST)
            except UserError:
                continue
            together[name] = larger
            break
    return together


def outcomes(
    architecture: dict[str, Any], layout: dict[str, int], stage: int
) -> dict[tuple[str, ...], str | tuple[Shapes, Shapes]]:
    """Make sizes odd, fewer at a time as long as they are refused; return for each such run its
    refusal, or the shapes of the parameters in a stage of the pipeline and in the whole model."""
    found: dict[tuple[str, ...], str | tuple[Shapes, Shapes]] = {}
    ranks = math.prod(layout.values())
    if layout.get("expert_parallel_degree"):  # over the ranks of the others
        ranks //= layout["expert_parallel_degree"]
    rank = stage * ranks // layout.get("pipeline_parallel_degree", 1)
    with pretend.pretending(rank, ranks):
        dims, left = None, [odd(architecture)]
        while left:
            sizes = left.pop()
            run = planned(architecture | sizes, layout, global_batch_size=12, seq_len=256)
            try:
                config, _ = put_together(run)
                dims = dims or pretend.mesh(config, ranks)
                parts = pretend.model_parts(config, dims)
            except UserError as error:
                half = len(sizes) // 2
                if half:
                    left += map(
                        dict, (islice(sizes.items(), half), islice(sizes.items(), half, None))
                    )
                found[tuple(sizes)] = error.sentence()
                continue
            with torch.device("meta"):
                whole = config.model_spec.model.build()
            here = {name: shape for part in parts for name, shape in shapes(part).items()}
            found[tuple(sizes)] = here, shapes(whole)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name in TINIES
        for layout in LAYOUTS
        if "num_experts" in TINIES[name] or layout != "fsdp_ep_tp"
    ],
)
def test_no_layout_trains_a_larger_model(name: str, layout: str) -> None:
    """With odd sizes: the shapes of the whole model, or a sentence with a key."""
    shorter = {"n_layers": 2}
    if name.startswith("qwen3_5"):
        shorter["full_attention_interval"] = 2
    model, degrees = TINIES[name] | shorter, LAYOUTS[layout]
    models.subject(HOST, TINIES[name])  # imports its code for the processes below
    stages = [
        # torch keeps meshes for the life of a process.
        call(partial(outcomes, model, degrees, stage))
        for stage in range(degrees.get("pipeline_parallel_degree", 1))
    ]
    trained = False
    for sizes, first in stages[0].items():
        if isinstance(first, str):
            assert first.startswith(("architecture.", "parallelism.", "training.")), (sizes, first)
            continue
        together: Shapes = {}
        for found in stages:
            part = found[sizes]
            assert not isinstance(part, str), (sizes, part)
            together |= part[0]
        assert together == first[1], sizes
        trained = True
    assert trained or (name.startswith("qwen3_5") and "context_parallel_degree" in degrees)
    if "tensor_parallel_degree" in degrees and "hidden_dim" in model and trained:
        refused = [said for said in stages[0].values() if isinstance(said, str)]
        assert any(said.startswith(TP) for said in refused)


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
        pretend.check_built(config, model, ranks)
