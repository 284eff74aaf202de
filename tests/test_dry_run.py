"""Dry runs and chosen layouts, through the real command."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.plan.memory import parts_of
from atom.plugin import PreparedTokenizer
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import select

H100 = ("architecture.vocab_size=128256", "training.seq_len=8192", "device=h100", "tokenizer=bytes")


def ranks(text: str, row: str) -> list[str]:
    """Return the values of ``row`` of the report, a rank each."""
    (line,) = (line for line in text.splitlines() if line.startswith(row))
    return line.removeprefix(row).split()


@pytest.mark.slow
def test_llama_405b_on_ten_thousand_gpus(atom: Callable, tmp_path: Path) -> None:
    done = atom(
        *("train", "--dry-run", "world_size=10240", "architecture=llama3_405b", *H100),
        *("parallelism=4d", "parallelism.data_parallel_shard_degree=-1"),
        *("parallelism.tensor_parallel_degree=8", "parallelism.pipeline_parallel_degree=16"),
        *("parallelism.context_parallel_degree=1", "training.global_batch_size=1280"),
        "activation_checkpoint.mode=full",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "405,853,388,800 parameters" in done.stdout
    assert "data_parallel_shard 80 x tensor_parallel 8 x pipeline_parallel 16" in done.stdout
    assert "flex: attention" in done.stdout
    assert "layers 119-125 +norm +lm_head" in done.stdout
    # 16 bytes a parameter over 640 ranks of a stage, as torch itself has sharded them.
    (first, *_) = ranks(done.stdout, "elements")
    assert int(first.replace(",", "")) * 640 == pytest.approx(405_853_388_800 / 16, rel=0.05)
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_told_in_one_sentence(atom: Callable, tmp_path: Path) -> None:
    done = atom(
        *("train", "dry_run=true", "world_size=8", "architecture=llama3_8b", *H100),
        *("parallelism=fsdp", "training.global_batch_size=64", "callbacks=ema"),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "optimizer states" in done.stdout, "the table is shown nevertheless"
    (elements, *_), (averaged, *_) = (
        ranks(done.stdout, n) for n in ("elements", "averaged weights")
    )
    weights = int(elements.replace(",", ""))
    assert float(averaged) == pytest.approx(weights * 4 / 2**30, abs=0.006)
    (sentence,) = done.stderr.splitlines()
    assert re.search(r"world_size=8 \(command line\): rank 0 needs \d+\.\d GiB", sentence)
    assert "79.1 GiB" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("device=h100",), ("device=h100", "dry_run=true", "auto, cpu, cuda")),
        (("world_size=4",), ("world_size=4", "dry_run=true", "launch.ranks")),
        (("dry_run=true", "device=h1000"), ("device=h1000", "'cpu'", "h100")),
    ],
)
def test_mistakes(
    forked: Callable, small: tuple[str, ...], tmp_path: Path, overrides: Any, says: Any
) -> None:
    refused(forked("train", *small[:-1], *overrides, cwd=tmp_path), says)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("dry_run=true", "world_size=6", "parallelism=tp"), ("needs 2 ranks", "world_size=6")),
        (
            ("activation_checkpoint.mode=auto",),
            ("activation_checkpoint.mode=auto", "parallelism=auto"),
        ),
        (
            ("parallelism=auto", "parallelism.tensor_parallel_degree=3", "launch.ranks=2"),
            ("parallelism", "2 ranks"),
        ),
    ],
)
def test_mistakes_that_take_torchtitan_to_see(
    atom: Callable, small: tuple[str, ...], tmp_path: Path, overrides: Any, says: Any
) -> None:
    refused(atom("train", *small[:-1], *overrides, cwd=tmp_path), says)
    assert not list(tmp_path.iterdir())


def refused(done: subprocess.CompletedProcess[str], says: tuple[str, ...]) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert all(word in sentence for word in says), sentence


@pytest.mark.slow
def test_auto_explains_itself(atom: Callable, tmp_path: Path) -> None:
    done = atom(
        *("train", "dry_run=true", "world_size=256", "architecture=llama3_70b", *H100),
        *("parallelism=auto", "training.global_batch_size=512"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[0].splitlines()
    assert table[0].startswith("parallelism=auto: 256 x h100, 79.1 GiB each")
    ten, others = table[2:12], table[12:]
    assert ten[0].endswith("chosen")
    # Each of the others says in which part of a step it loses.
    assert all(re.search(r"(\+[\d.e-]+ s|as fast)$", line) for line in ten[1:])
    seconds = [float(re.split(r"  +", line.strip())[5]) for line in ten]
    assert seconds == sorted(seconds)
    said = {line.strip().split(":")[0]: line for line in others}
    assert "too large" in said["FSDP alone"] or " s (" in said["FSDP alone"]
    assert "full activation checkpointing" in said


@pytest.mark.slow
def test_auto_keeps_what_is_given(atom: Callable, tmp_path: Path) -> None:
    done = atom(
        *("train", "dry_run=true", "world_size=64", "architecture=llama3_8b", *H100),
        *("parallelism=auto", "training.global_batch_size=128"),
        *("parallelism.pipeline_parallel_degree=2", "activation_checkpoint.mode=full"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "pipeline_parallel 2" in done.stdout
    assert "activation checkpointing full" in done.stdout


@pytest.mark.slow
def test_auto_asks_the_architecture(atom: Callable, tmp_path: Path) -> None:
    """Qwen3.5's linear layers exchange tokens for heads, which the ranks must divide."""
    done = atom(
        *("train", "dry_run=true", "world_size=8", "architecture=qwen3_5_tiny", *H100[1:]),
        *("parallelism=auto", "parallelism.context_parallel_degree=8"),
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "parallelism.context_parallel_degree=8: must divide the 4 value heads" in done.stderr
    done = atom(
        *("train", "dry_run=true", "world_size=8", "architecture=qwen3_5_tiny", *H100[1:]),
        *("parallelism=auto", "training.global_batch_size=4"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert " cp 8" not in done.stdout


@pytest.mark.slow
def test_auto_trains_on_a_cpu(atom: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    place = tmp_path / "run"
    done = atom(
        *("train", *small, "parallelism=auto", "launch.ranks=2", "training.steps=2"),
        f"run.dir={place}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("chosen") < done.stdout.index("llama3_tiny (llama3)")
    run = yaml.safe_load((place / "run.yaml").read_text())
    assert run["parallelism"]["data_parallel_shard_degree"] == 2
    assert run["activation_checkpoint"]["mode"] == "none"
    assert run["resolved"]["world_size"] == 2


LAID_OUT: tuple[dict[str, int], ...] = (
    {"data_parallel_shard_degree": 3},
    {"data_parallel_shard_degree": 2, "tensor_parallel_degree": 2},
    {"data_parallel_shard_degree": 3, "pipeline_parallel_degree": 2},
    {"data_parallel_replicate_degree": 2, "context_parallel_degree": 2},
)


@pytest.fixture(scope="module")
def shards() -> list[list[tuple[int, int]]]:
    """The counted and the estimated elements of each rank, for each of ``LAID_OUT``.

    They are counted in a process of its own, as a dry run is: other tests leave CUDA looking as if
    it were in use.
    """
    architecture = {
        "name": "llama3",
        "dim": 120,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 8,
        "vocab_size": 332,
        "rope_scaling": "none",
    }
    sections = [
        {
            "dry_run": True,
            "device": "h100",
            "world_size": math.prod(degrees.values()),
            "architecture": architecture,
            "tokenizer": {"name": "bytes"},
            "optimizer": {"name": "AdamW"},
            "dataset": {"name": "stdlib"},
            "parallelism": {"name": "mesh", "data_parallel_shard_degree": 1} | degrees,
            "training": {"seq_len": 256, "global_batch_size": 12, "disable_cuda_graphs": True},
        }
        for degrees in LAID_OUT
    ]
    code = (
        "import json, runpy, sys\n"
        "from atom.recipe.run import parse\n"
        "counted = runpy.run_path(sys.argv[1])['counted_and_estimated']\n"
        "print(json.dumps([counted(parse(each)) for each in json.loads(sys.argv[2])]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, __file__, json.dumps(sections)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: list[list[tuple[int, int]]] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LAID_OUT)), ids=map(str, LAID_OUT))
def test_counted_shards_are_the_estimated_ones(
    number: int, shards: list[list[tuple[int, int]]]
) -> None:
    """What torch's sharding leaves on the first rank of a stage is what the arithmetic says."""
    assert len(shards[number]) == LAID_OUT[number].get("pipeline_parallel_degree", 1)
    for counted, estimated in shards[number]:
        assert counted == estimated


def counted_and_estimated(run: Run) -> list[tuple[int, int]]:
    """Return the elements of each rank that was built."""
    from atom.titan.preflight.dry_run import dry_run

    host = Host.load()
    found = dry_run(run, select(run, host), host, tokenizer=PreparedTokenizer(vocab_size=320))
    layout, model = found.estimate.layout, found.model
    assert [rank.pipeline_rank for rank in found.ranks] == list(range(layout.pp))
    return [
        (
            rank.numel,
            sum(size.local for size in parts_of(model, layout, rank.pipeline_rank).values()),
        )
        for rank in found.ranks
    ]
