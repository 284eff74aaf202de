"""``atom plan OVERRIDES…``: a run of any size, before it exists."""

from __future__ import annotations

import json
import re
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
    "": "a budget is missing; valid: budget=1e23, `atom plan fit`, `atom plan calibrate`, or",
    "plan.price=3 world_size=8": "plan.price=3: is no key of a plan; did you mean plan.",
    "plan.price_gpu_hour=-1": "plan.price_gpu_hour=-1 (command line): valid: a number from 0",
    "plan.tokens=many": "plan.tokens=many (command line): valid: a number from 1",
    "plan.nodes=1.5": "plan.nodes=1.5 (command line): valid: a whole number from 1",
    "plan.network=carrier": "plan.network=carrier (command line): valid: Gb/s a GPU above 0, or",
    "plan.network=0": "plan.network=0 (command line): valid: Gb/s a GPU above 0, or infiniband_ndr",
    "plan.sharding=zero9": "plan.sharding=zero9 (command line): valid: fsdp, zero1",
    "plan.spares=-1": "plan.spares=-1 (command line): valid: a whole number from 0",
    "plan.failure_rate=nan": "plan.failure_rate=nan (command line): valid: a number from 0",
    "plan.checkpoint_write=0": "plan.checkpoint_write=0 (command line): valid: a number from 0.001",
    "world_size=8 --html nowhere/page.html": "--html=nowhere/page.html: there is no folder",
    "world_size=8 --html .": "--html=.: is a folder; valid: a file in an existing folder",
    "budget=1e23 --html page.html": "--html is for the plan of a run, and a budget has none",
    "budget=1e23 -m": "--multirun is for the plan of a run, and a budget has none",
    "budget=1e300": "budget=1e300 (command line): is 1e+300 FLOPs, far beyond all runs that laws",
    "budget=1e-9usd": "budget=1e-9usd (command line): is 4.2",
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


SWEPT = (
    "world_size=8,16", "device=h100", "architecture=llama3_tiny", "tokenizer=bytes",
    "architecture.n_layers=6", "training.seq_len=64", "training.global_batch_size=32",
    "parallelism=pp", "parallelism.pipeline_parallel_degree=2,4",
    "parallelism.data_parallel_shard_degree=-1", "plan.spares=1",
)  # fmt: skip


@pytest.mark.slow
def test_a_sweep_prints_each_plan_and_draws_all(atom: Callable, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    done = atom("plan", *SWEPT, "-m", "--json", "--html", str(file), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    decoder, plans, text = json.JSONDecoder(), [], done.stdout.lstrip()
    while text:
        found, end = decoder.raw_decode(text)
        plans.append(found)
        text = text[end:].lstrip()
    assert [(p["ranks"], p["layout"]["pp"]) for p in plans] == [(8, 2), (8, 4), (16, 2), (16, 4)]
    for plan in plans:
        assert plan["bubble"] > 0
        assert plan["campaign"]["spares"] == 1
        assert plan["range_of"] == "hopper_bf16"
        for name in ("step_seconds", "days", "dollars", "kwh", "goodput", "memory_gib"):
            low, high = plan[f"{name}_range"]
            assert low * 0.999999 <= plan[name] <= high * 1.000001
    assert list(tmp_path.iterdir()) == [file], "a sweep leaves no folder"
    page_of_all = file.read_text()
    assert "<script" not in page_of_all
    assert not re.search(r"(src|href)=\"(?!#)", page_of_all)
    for heading in ("Scaling", "A step", "Memory", "Pipeline", "Campaign"):
        assert f">{heading}</h2>" in page_of_all
    # Each bar is as long as its parts, and has a part for each of a thousandth or more.
    for plan in plans:
        assert f"matrix products: {plan['parts']['products']:.3g} s" in page_of_all


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
    assert mine["campaign"]["ettr"] == mine["goodput"]
    assert mine["inputs"]["price_gpu_hour"] == 3
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
