"""The time model of a step: against measurements, closed forms and its own limits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.plan.constants import DEFAULT, PRIORS, Constants
from atom.plan.constants import PUBLISHED as PUBLISHED_CONSTANTS
from atom.plan.device import named
from atom.plan.execution import (
    COMPILED,
    CUDNN,
    DELAYED,
    EAGER,
    FSDP,
    KERNELS,
    TENSORWISE,
    ZERO1,
    Execution,
)
from atom.plan.layout import Layout
from atom.plan.model import FULL, NONE, SELECTIVE
from atom.plan.time.collectives import all_to_all, gather
from atom.plan.time.orders import interleaved
from atom.plan.time.products import product
from atom.plan.time.step import Step, slowest, step
from atom.plan.transformer import transformer

H100 = named("h100")
SHORT_RUN = Constants(sustained_h100=1.0)

LLAMA_8B = {
    "layers": 32, "dim": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn_dim": 14336,
    "vocab": 128256, "mlp": "swiglu",
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {"layers": 80, "dim": 8192, "heads": 64, "ffn_dim": 28672}


def fsdp(**fields: Any) -> Layout:
    """Return the layout of Llama 3 8B on 8 GPUs, as in torchtitan's tables."""
    work = transformer(LLAMA_8B)
    values: dict[str, Any] = {
        "dp_shard": 8,
        "seq_len": 8192,
        "local_batch_size": 2,
        "checkpointing": SELECTIVE,
        "stages": ((*work.blocks, "lm_head"),),
        "execution": Execution(fusion=COMPILED),
    }
    return Layout(**(values | fields))


def megatron(dp: int) -> Layout:
    """Return the layout of Llama 3.1 70B in bf16 in dgxc-benchmarking's tables."""
    parts = list(transformer(LLAMA_70B).blocks)
    stages = [tuple(parts[start : start + 4]) for start in range(0, 80, 4)]
    stages[-1] = (*stages[-1], "lm_head")
    return Layout(
        dp_replicate=dp,
        tp=4,
        pp=4,
        cp=2,
        seq_len=8192,
        local_batch_size=64,
        stages=tuple(stages),
        stages_of=tuple(tuple(range(rank, 20, 4)) for rank in range(4)),
        in_flight=({}, {}, {}, {}),
        reshard=False,
        reduce_dtype="bfloat16",
        order=interleaved(4, 5, 64),
        execution=Execution(
            fusion=KERNELS,
            attention=CUDNN,
            sharding=ZERO1,
            async_tp=True,
            regathers=True,
            saves_products=False,
        ),
    )


def seconds(layout: Layout, device: Any = None) -> Step:
    return step(transformer(LLAMA_8B), layout, device or named("h100_hbm2e_500w"))


# ---------------------------------------------------------------------------- against measurements


@pytest.mark.parametrize(("size", "teraflops"), [(2048, 677), (4096, 789), (8192, 798)])
def test_products_have_their_measured_rates(size: int, teraflops: float) -> None:
    """bf16 squares on an H100 SXM; at 1024 launches dominate, which this is not about."""
    found = product(size, size, size, 1, "bfloat16", H100, SHORT_RUN)
    assert 2e-12 * size**3 / found == pytest.approx(teraflops, rel=0.05)


def test_collectives_have_their_measured_bandwidths() -> None:
    """All-gathers of 16 GiB on 8 H200s reach 361 GB/s (ml-engineering, network/README.md)."""
    size = 16 * 2**30
    bandwidth = 7 / 8 * size / gather(size, 8, 1, named("h200"), Constants())
    assert bandwidth == pytest.approx(361e9, rel=0.02)


PUBLISHED = [
    # pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3
    (LLAMA_8B, fsdp(), "h100_hbm2e_500w", 2.4575),
    (LLAMA_8B, fsdp(execution=Execution(fusion=EAGER)), "h100_hbm2e_500w", 2.8435),
    (LLAMA_8B, fsdp(dp_shard=128), "h100_hbm2e_500w", 2.5152),
    # NVIDIA/dgxc-benchmarking, llama3.1/README.md, Llama 3.1 70B BF16 on 64 and 2,048 GPUs
    (LLAMA_70B, megatron(2), "h100", 14.66),
    (LLAMA_70B, megatron(64), "h100", 14.66),
]


@pytest.mark.parametrize(("dims", "layout", "device", "measured"), PUBLISHED)
def test_published_steps_take_as_long(
    dims: dict[str, Any], layout: Layout, device: str, measured: float
) -> None:
    assert step(transformer(dims), layout, named(device)).seconds == pytest.approx(
        measured, rel=0.12
    )


# ---------------------------------------------------------------------------- closed forms


@given(ranks=st.integers(2, 6), chunks=st.integers(1, 4), groups=st.integers(1, 3))
def test_interleaved_pipelines_have_their_closed_form(ranks: int, chunks: int, groups: int) -> None:
    """Narayanan et al. (2021), section 2.2.2: (p - 1) / (v m + p - 1) of the time is idle."""
    microbatches = ranks * groups
    schedule = interleaved(ranks, chunks, microbatches)
    busy = 3.0 * chunks * microbatches
    total = schedule.duration([(1.0, 2.0)] * (ranks * chunks))
    assert 1 - busy / total == pytest.approx((ranks - 1) / (chunks * microbatches + ranks - 1))


def test_a_slow_stage_is_waited_for_and_sends_delay() -> None:
    schedule = interleaved(4, 1, 8)
    even = schedule.duration([(1.0, 2.0)] * 4)
    assert schedule.duration([(1.0, 2.0)] * 3 + [(2.0, 4.0)]) >= even + 8 * 3
    assert schedule.duration([(1.0, 2.0)] * 4, send=0.1) > even


@given(nodes=st.integers(2, 64))
def test_a_group_with_one_rank_a_node_has_one_nic(nodes: int) -> None:
    size, constants = 4 * 2.0**30, Constants(network=1.0)
    alone = (nodes - 1) / nodes * size / gather(size, nodes, 8, H100, constants)
    whole = (8 * nodes - 1) / 8 / nodes * size / gather(size, 8 * nodes, 1, H100, constants)
    assert alone <= H100.network_bandwidth
    assert H100.network_bandwidth * 4 < whole <= H100.node_bandwidth


def test_a_token_is_sent_to_a_node_once() -> None:
    args = 8, 64, 1, H100, Constants()
    once, often = (all_to_all(2.0**28, *args, once=flag) for flag in (True, False))
    assert once < often
    inside = (all_to_all(2.0**28, 8, 8, 1, H100, Constants(), once=flag) for flag in (True, False))
    assert len(set(inside)) == 1


def test_the_slowest_of_many_is_slower() -> None:
    """Expected maxima of normal samples: 1.42 of 8, 2.51 of 100, 3.24 of 1,000."""
    for ranks, expected in ((8, 1.42), (100, 2.51), (1000, 3.24)):
        assert slowest(ranks) == pytest.approx(expected, rel=0.02)
    assert slowest(1) == 0


# ---------------------------------------------------------------------------- what changes a step

SLOWER = {
    "checkpointing": (fsdp(checkpointing=NONE), fsdp(checkpointing=FULL)),
    "eager operations": (fsdp(), fsdp(execution=Execution(fusion=EAGER))),
    "bfloat16": (fsdp(execution=Execution(fusion=COMPILED, products=TENSORWISE)), fsdp()),
    "many nodes": (fsdp(), fsdp(dp_shard=1024)),
    "accumulation": (fsdp(), fsdp(accumulation=2)),
    "tensor parallelism that nothing hides": (
        fsdp(tp=8, execution=Execution(fusion=COMPILED, async_tp=True)),
        fsdp(tp=8),
    ),
    "a window": (fsdp(seq_len=8192), fsdp(seq_len=16384, local_batch_size=1)),
}


@pytest.mark.parametrize("name", SLOWER)
def test_a_step_takes_longer_with(name: str) -> None:
    fast, slow = SLOWER[name]
    assert seconds(fast).seconds < seconds(slow).seconds


def test_power_and_bandwidth_count() -> None:
    capped = replace(H100, power_limit=500.0)
    slow_memory = replace(H100, name="slow", memory_bandwidth=1e12)
    plain = seconds(fsdp(), H100)
    assert seconds(fsdp(), capped).products > plain.products
    assert seconds(fsdp(), slow_memory).memory > plain.memory


def test_one_rank_waits_for_nobody() -> None:
    found = seconds(fsdp(dp_shard=1))
    assert found.exposed == {}
    assert found.idle == found.stragglers == 0
    assert found.seconds == found.compute


def test_sharding_of_the_optimizer_alone_sends_once_a_step() -> None:
    slow = replace(H100, name="slow", node_bandwidth=20e9)
    whole, states = (
        seconds(fsdp(accumulation=8, execution=Execution(sharding=sharding)), slow).exposed["fsdp"]
        for sharding in (FSDP, ZERO1)
    )
    assert states < whole / 4


def test_experts_are_exchanged_and_multiplied() -> None:
    dims = LLAMA_8B | {"experts": 64, "top_k": 4, "moe_ffn": 2048}
    work = transformer(dims)
    layout = fsdp(dp_shard=8, ep=8)
    found = step(work, layout, H100)
    assert found.exposed["ep"] > 0
    alone = step(work, replace(layout, ep=1), H100)
    assert "ep" not in alone.exposed


def test_a_device_without_float8_multiplies_in_bfloat16() -> None:
    a100 = named("a100")
    plain, quantized = (
        seconds(fsdp(execution=Execution(products=recipe)), a100).products
        for recipe in ("bfloat16", DELAYED)
    )
    assert quantized == pytest.approx(plain, rel=0.15)


def test_every_fitted_constant_has_a_prior() -> None:
    assert set(PRIORS) == set(Constants.__dataclass_fields__)


# ---------------------------------------------------------------------------- the benchmark

ROW = {
    "id": "t/one", "set": "torchtitan-2024-12", "clean": "A",
    "framework": "torchtitan", "date": "2024-12",
    "model": LLAMA_8B | {"name": "Llama 3.1 8B"},
    "hardware": {"gpu": "H100 SXM 96GB HBM2e", "count": 8, "gpus_per_node": 8},
    "layout": {
        "dp_shard": 8, "dp_replicate": 1, "tp": 1, "cp": 1, "pp": 1, "micro_batch": 2,
        "global_batch": 16, "seq_len": 8192,
    },
    "precision": "bf16", "flags": {"compile": True, "ac": "selective"},
    "measured": {}, "derived": {"step_seconds": 2.4575},
}  # fmt: skip


def test_the_benchmark_scores_rows_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = ROW | {"score": ["memory"], "measured": ROW["measured"] | {"memory_gib": 77.0}}
    rows.write_text("\n".join(json.dumps(row) for row in (row, ROW | {"id": "c", "clean": "C"})))
    script = Path(__file__).parents[1] / "benchmarks" / "plan_accuracy.py"
    done = subprocess.run(
        [sys.executable, script, rows, "--show", "t/one", "--auto"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "| Hopper | 1 |" in done.stdout
    assert "left out: 1 of torchtitan-2024-12: class C" in done.stdout
    assert "t/one: 2.458 s, predicted" in done.stdout
    assert "| t/one | 77.0 | 76.6 | -0.5% |" in done.stdout
    assert "auto: 1 published layouts that fit" in done.stdout


def test_the_documentation_has_every_constant() -> None:
    page = (Path(__file__).parents[1] / "docs" / "planning.md").read_text()
    for name in PRIORS:
        row = f"| {getattr(PUBLISHED_CONSTANTS, name):g} | {PRIORS[name]:g} | "
        assert f"| `{name}` |" in page
        assert f"{row}{getattr(DEFAULT, name):g} |" in page
