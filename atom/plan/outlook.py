"""Tell what a run will take: speed, days with failures, dollars and energy, each as a range."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from atom.plan.campaign import Campaign, simulate
from atom.plan.device import GIB, DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.execution import BFLOAT16
from atom.plan.failures import DEVICES_PER_NODE, asynchronous
from atom.plan.model import ModelDescription
from atom.plan.work import ModelWork, work

CHECKPOINT = 13.0
"""Bytes of a checkpoint for a parameter (Llama 3.1 in dgxc-benchmarking: 12.8 to 13.1)."""

WATTS = 7300 / 8
"""Watts of a GPU with its share of a node: 7.3 kW a node of 8 H100s (arXiv 2506.14551)."""

HELD_OUT = 0.20
"""Relative error that 92 % of the steps of H100s published by sources not fitted stay below."""

CAMPAIGNS = 200


@dataclass(frozen=True, slots=True)
class Prices:
    """Inputs: dollars of a GPU-hour, watts of a GPU with its share of a node, kg CO2 of a kWh."""

    price_gpu_hour: float = 3.0
    watts_gpu: float = WATTS
    co2_kwh: float = 0.0


def flops_per_token(model: ModelWork, seq_len: int, *, full: bool = False) -> float:
    """Return the model's FLOPs of a token in a step: six a weight used, and attention.

    Attention is causal, half of its scores; ``full`` counts all of them, as some tables do.
    Recomputation does not count.
    """
    total = 6.0 * model.width * model.vocab_size * model.outputs
    for block in model.blocks.values():
        total += 6.0 * sum(p.inputs * p.outputs * p.top_k for p in block.products)
        seen = min(block.window or seq_len, seq_len if full else seq_len / 2)
        total += 12.0 * block.attention_width * seen
    return total


def outlook(
    found: Estimate,
    model: ModelDescription,
    device: DeviceDescription,
    steps: int,
    prices: Prices,
    *,
    tokens: int | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Return what a run will take, as JSON values.

    Args:
        found: the estimate of a step; of the largest batch, if batches differ.
        model: the model.
        device: the device.
        steps: steps of the run.
        prices: what GPUs and power cost.
        tokens: tokens of all steps; None: those of ``found`` in each.
        seconds: time of all steps; None: that of ``found`` for each.
    """
    layout, step, ranks = found.layout, found.step, found.layout.ranks
    each = layout.dp * layout.local_batch_size * layout.accumulation * layout.seq_len
    rate = each / step.seconds / ranks
    described, peak = work(model), device.peak(BFLOAT16)
    campaign = Campaign(
        step_seconds=step.seconds if seconds is None else seconds / steps,
        steps=steps,
        nodes=max(ranks / DEVICES_PER_NODE, 1),
        checkpoint=asynchronous(CHECKPOINT * model.numel, ranks),
    )
    days = simulate(campaign, campaigns=CAMPAIGNS, seed=0)
    low, middle, high = days.days(0.05, 0.5, 0.95)
    hours = ranks * middle * 24
    ranges = [low / (1 + HELD_OUT), high * (1 + HELD_OUT)]
    kwh = hours * prices.watts_gpu / 1000
    return {
        "fits": found.fits,
        "step_seconds": step.seconds,
        "step_seconds_range": [step.seconds / (1 + HELD_OUT), step.seconds * (1 + HELD_OUT)],
        "tokens_per_second_per_gpu": rate,
        "mfu": rate * flops_per_token(described, layout.seq_len) / peak,
        "mfu_full_attention": rate * flops_per_token(described, layout.seq_len, full=True) / peak,
        "memory_gib": found.memory.total / GIB,
        "memory_limit_gib": found.limit / GIB,
        "memory": {f.name: getattr(found.memory, f.name) / GIB for f in fields(found.memory)},
        "parts": {
            name: getattr(step, name)
            for name in (
                "products", "attention", "memory", "launches", "optimizer", "other", "idle",
                "stragglers",
            )
        },
        "exposed": step.exposed,
        "bubble": step.idle / step.seconds,
        "tokens": each * steps if tokens is None else tokens,
        "steps": steps,
        "days": middle,
        "days_range": ranges,
        "goodput": float(days.effective.mean()),
        "checkpoint_steps": days.interval,
        "checkpoint_gib": CHECKPOINT * model.numel / GIB,
        "gpu_hours": hours,
        "dollars": hours * prices.price_gpu_hour,
        "dollars_range": [day * ranks * 24 * prices.price_gpu_hour for day in ranges],
        "kwh": kwh,
        **({"co2_kg": kwh * prices.co2_kwh} if prices.co2_kwh else {}),
    }  # fmt: skip
