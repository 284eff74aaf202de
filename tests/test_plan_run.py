"""``atom plan OVERRIDES…``: a run of any size, before it exists."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atom.cli.plan_page import page
from atom.cli.plan_run import Settings, changed, read
from atom.plan.device import GIB, named
from atom.plan.outlook import flops_per_token
from atom.plan.transformer import transformer

WRONG = {
    "": "a budget is missing; valid: budget=1e23, `atom plan fit`, or overrides of `atom train`",
    "plan.price=3 world_size=8": "plan.price=3: is no key of a plan; did you mean plan.price_gpu",
    "plan.price_gpu_hour=-1": "plan.price_gpu_hour=-1 (command line): valid: a number from 0",
    "plan.tokens=many": "plan.tokens=many (command line): valid: a number from 1",
    "plan.nodes=1.5": "plan.nodes=1.5 (command line): valid: a whole number from 1",
    "plan.network=carrier": "plan.network=carrier (command line): valid: Gb/s a GPU above 0, or",
    "plan.network=0": "plan.network=0 (command line): valid: Gb/s a GPU above 0, or infiniband_ndr",
    "plan.sharding=zero9": "plan.sharding=zero9 (command line): valid: fsdp, zero1",
    "plan.tokens=1 plan.tokens=2": "plan.tokens=2 (command line): is given twice",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_plans_are_refused(forked: Callable, tmp_path: Path, words: str) -> None:
    done = forked("plan", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert WRONG[words] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_networks_and_nodes_change_the_device() -> None:
    h100 = named("h100")
    slow = changed(read(["plan.network=efa_p4d"]), h100, 64)
    assert slow == replace(h100, network_bandwidth=6.25e9)
    assert changed(read(["plan.nodes=16"]), h100, 64).devices_per_node == 4
    assert changed(Settings(), h100, 64) == h100


def test_flops_are_six_a_weight_and_causal_attention() -> None:
    """Llama 3 8B: 7.5 billion weights in products (8.03 without the embedding's 0.53)."""
    work = transformer(
        {"layers": 32, "dim": 4096, "heads": 32, "kv_heads": 8, "ffn_dim": 14336, "vocab": 128256}
    )
    weights, attention = 8.03e9 - 128256 * 4096, 12 * 32 * 4096 * 8192
    assert flops_per_token(work, 8192) == pytest.approx(6 * weights + attention / 2, rel=1e-3)
    assert flops_per_token(work, 8192, full=True) == pytest.approx(
        6 * weights + attention, rel=1e-3
    )


RUN = (
    "world_size=16", "device=h100", "architecture=llama3_1b", "tokenizer=bytes",
    "training.seq_len=2048", "training.global_batch_size=32",
    "parallelism.data_parallel_shard_degree=-1", "plan.tokens=1e12", "plan.co2_kwh=0.5",
)  # fmt: skip


@pytest.mark.slow
def test_a_plan_has_all_numbers_and_what_if(atom: Callable, tmp_path: Path) -> None:
    plans = []
    for more in ((), ("plan.sharding=zero1", "plan.network=25")):
        done = atom("plan", *RUN, *more, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(done.stdout))
    mine, other = plans
    assert mine["fits"] is True
    assert mine["tokens"] == pytest.approx(1e12, rel=0.01)
    # Parts and exposed communication are the whole step.
    whole = sum(mine["parts"].values()) + sum(mine["exposed"].values())
    assert whole == pytest.approx(mine["step_seconds"])
    assert mine["step_seconds"] * mine["steps"] / 86400 <= mine["days"] * 1.001
    assert 0.1 < mine["mfu"] < mine["mfu_full_attention"] < 1
    assert 0 < mine["goodput"] <= 1
    assert mine["bubble"] == 0
    assert mine["dollars"] == pytest.approx(mine["days"] * 16 * 24 * 3)
    assert mine["kwh"] == pytest.approx(mine["gpu_hours"] * 0.9125)
    assert mine["co2_kg"] == pytest.approx(mine["kwh"] / 2)
    low, high = mine["step_seconds_range"]
    assert low < mine["step_seconds"] < high
    # ZeRO-1 keeps a bfloat16 weight and a float32 gradient on every rank.
    weights = other["memory"]["parameters"] * GIB / 2
    assert weights == pytest.approx(mine["parameters"], rel=0.01)
    assert other["memory"]["gradients"] == pytest.approx(2 * other["memory"]["parameters"])
    assert other["layout"]["dp_replicate"] == 16
    text = page(mine)
    assert "fits: " in text
    assert "kg CO2" in text
    assert "matrix products" in text
    assert not list(tmp_path.iterdir())
