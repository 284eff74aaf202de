"""Digests of tensors and tokens are the same under every layout, and differ by a bit."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atom.run_dir import checkpoint, metrics, starts
from atom.titan.checkpoint import tensor_digest

TINY = (
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4", "device=cpu"),
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("dataset=stdlib", "metrics.enable_tensorboard=false", "metrics.log_freq=2"),
    *("checkpoint.enable=true", "checkpoint.interval=3", "training.steps=6"),
    *("checkpoint.last_save_model_only=false",),
)


FSDP = ("launch.ranks=2", "parallelism=fsdp")


def plain(tensor: torch.Tensor) -> int:
    """The definition, by Python's integers."""
    bits = tensor.view(torch.int32 if tensor.itemsize == 4 else torch.int16).flatten().tolist()
    return sum(value * (2 * place + 1) for place, value in enumerate(bits)) % 2**64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 9), (3, 4, 5), (2, 70_000), (40_000, 3)])
def test_parts_add_up(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = tensor_digest.part(tensor, [0] * len(shape), shape)
    assert whole == plain(tensor)
    choose = random.Random(2)
    cuts = [sorted({0, size, choose.randint(0, size)}) for size in shape]
    parts = 0
    for box in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        piece = tensor[tuple(slice(*ends) for ends in box)]
        parts += tensor_digest.part(piece, [first for first, _ in box], shape)
    assert parts % 2**64 == whole
    changed = tensor.clone()
    changed.view(-1).view(torch.int16)[-1] ^= 1
    assert tensor_digest.part(changed, [0] * len(shape), shape) != whole


def rows(run: Path) -> list[tuple[int, str | None, str | None]]:
    return [(row.step, row.data, row.stream) for row in metrics.read(run / metrics.FILE_NAME)]


def tensors(run: Path, step: int) -> dict[str, Any]:
    place = run / "checkpoint" / f"step-{step}"
    found: dict[str, Any] = json.loads((place / checkpoint.TENSORS).read_text())["tensors"]
    return found


@pytest.mark.slow
def test_digests_of_a_run(tmp_path: Path, atom: Callable[..., Any]) -> None:
    """On one rank, and on two that shard, interrupted after step 3: the same tokens in the same
    order, and with next to no learning rate the same weights. Every start keeps its lock."""
    one, two = tmp_path / "one", tmp_path / "two"
    still = ("optimizer.lr=1e-30", "optimizer.weight_decay=0")
    for run, layout in ((one, ()), (two, (*FSDP, "training.steps=3"))):
        result = atom("train", *TINY, *still, *layout, f"run.dir={run}")
        assert result.returncode == 0, result.stderr
    lock = (two / "starts/1/lock.json").read_bytes()
    again = ("launch.ranks=2", "parallelism=tp")
    result = atom("train", *TINY, *still, *again, f"run.dir={two}")
    assert result.returncode == 0, result.stderr
    # The last step of each start is logged, too.
    assert [row for row in rows(two) if row[0] != 3] == rows(one)
    assert len({stream for _, _, stream in rows(one)}) == 4
    for step in (3, 6):
        here, there = (
            {name: each for name, each in tensors(run, step).items() if "optimizer" not in name}
            for run in (one, two)
        )
        assert here == there
        assert "stream.digest" in here
    assert starts.numbers(two) == [1, 2]
    assert (two / "starts/1/lock.json").read_bytes() == lock
    locks = [json.loads((two / f"starts/{number}/lock.json").read_text()) for number in (1, 2)]
    assert [(lock["start"], lock["step"]) for lock in locks] == [(1, 0), (2, 3)]
    assert json.loads((two / "checkpoint/step-6/lock.json").read_text()) == locks[1]
    assert "parallelism" in (two / "starts/2/run.yaml").read_text()
    machine = json.loads((two / "starts/2/machine-0.json").read_text())
    assert machine["device"] == {"type": "cpu"}
    assert machine["torch"] == torch.__version__
    saved = [json.loads(line) for line in (two / "events.jsonl").read_text().splitlines()]
    told = [event["tensors"] for event in saved if event["event"] == "checkpoint_saved"]
    assert told == [checkpoint.tensors(two / "checkpoint", step) for step in (3, 6)]


@pytest.mark.slow
def test_without_digests(tmp_path: Path, atom: Callable[..., Any]) -> None:
    off = ("provenance.token_digest=false", "provenance.tensor_digest=false")
    patch = "provenance.patch=false"
    result = atom("train", *TINY, *off, patch, "training.steps=3", f"run.dir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    assert {row[1:] for row in rows(tmp_path / "run")} == {(None, None)}
    assert checkpoint.tensors(tmp_path / "run/checkpoint", 3) is None
    assert not (tmp_path / "run/starts/1/patches").exists()
