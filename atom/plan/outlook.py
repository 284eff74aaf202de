"""Tell what a run will take: speed, days with failures, dollars and energy, each as a range."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from atom.plan import errors
from atom.plan.campaign import Campaign, Outcome, simulate
from atom.plan.device import GIB, DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.execution import BFLOAT16
from atom.plan.failures import (
    DAY,
    DEVICES_PER_NODE,
    RATE,
    STORAGE,
    Failures,
    asynchronous,
    spares_needed,
)
from atom.plan.model import ModelDescription
from atom.plan.time.own_constants import of_device
from atom.plan.time.stages import stages
from atom.plan.work import ModelWork, work

CHECKPOINT = 13.0
"""Bytes of a checkpoint for a parameter (Llama 3.1 in dgxc-benchmarking: 12.8 to 13.1)."""

WATTS = 7300 / 8
"""Watts of a GPU with its share of a node: 7.3 kW a node of 8 H100s (arXiv 2506.14551)."""

CAMPAIGNS = 200


@dataclass(frozen=True, slots=True)
class Prices:
    """Inputs: dollars of a GPU-hour, watts of a GPU with its share of a node, kg CO2 of a kWh."""

    price_gpu_hour: float = 3.0
    watts_gpu: float = WATTS
    co2_kwh: float = 0.0


@dataclass(frozen=True, slots=True)
class Interruptions:
    """Inputs: failures of a node-day, nodes in reserve, hours of a repair, bytes/s to storage."""

    failure_rate: float = RATE.value
    spares: int | None = None
    repair_hours: float = 24.0
    checkpoint_write: float = STORAGE.value / 1e9

    @property
    def failures(self) -> Failures:
        """Return the failures; each campaign has a rate of its own around the given one."""
        repair = None if self.spares is None else self.repair_hours * 3600
        plain = Failures(rate=self.failure_rate, spares=self.spares, repair_seconds=repair)
        return plain.uncertain()


@dataclass(frozen=True)
class Outlook:
    """What a run will take.

    Attributes:
        told: as JSON values.
        days: the finishing day of each simulated campaign.
        timeline: the pipeline ranks' actions of a step; empty without a pipeline.
    """

    told: dict[str, Any]
    days: list[float] = field(default_factory=list)
    timeline: list[list[tuple[int, str, float, float]]] = field(default_factory=list)


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
    interruptions: Interruptions | None = None,
    *,
    tokens: int | None = None,
    seconds: float | None = None,
) -> Outlook:
    """Return what a run will take.

    Args:
        found: the estimate of a step; of the largest batch, if batches differ.
        model: the model.
        device: the device.
        steps: steps of the run.
        prices: what GPUs and power cost.
        interruptions: failures, spare nodes, storage; by default the published ones.
        tokens: tokens of all steps; None: those of ``found`` in each.
        seconds: time of all steps; None: that of ``found`` for each.
    """
    layout, step, ranks = found.layout, found.step, found.layout.ranks
    inputs = interruptions or Interruptions()
    batch = layout.dp * layout.local_batch_size * layout.accumulation * layout.seq_len
    rate = batch / step.seconds / ranks
    described, peak = work(model), device.peak(BFLOAT16)
    below, above = errors.spread(layout, device)
    size = CHECKPOINT * model.numel
    checkpoint = asynchronous(size, ranks, write=inputs.checkpoint_write * 1e9)
    campaign = Campaign(
        step_seconds=step.seconds if seconds is None else seconds / steps,
        steps=steps,
        nodes=max(ranks / DEVICES_PER_NODE, 1),
        checkpoint=checkpoint,
        failures=inputs.failures,
    )
    days = simulate(campaign, campaigns=CAMPAIGNS, seed=0)
    low, middle, high = days.days(0.05, 0.5, 0.95)
    hours = ranks * middle * 24
    ranges = [low * below, high * above]
    kwh = hours * prices.watts_gpu / 1000
    told: dict[str, Any] = {
        "fits": found.fits,
        "step_seconds": step.seconds,
        "step_seconds_range": [step.seconds * below, step.seconds * above],
        "range_of": errors.class_of(layout, device),
        "tokens_per_second_per_gpu": rate,
        "tokens_per_second_per_gpu_range": [rate / above, rate / below],
        "mfu": rate * flops_per_token(described, layout.seq_len) / peak,
        "mfu_full_attention": rate * flops_per_token(described, layout.seq_len, full=True) / peak,
        "memory_gib": found.memory.total / GIB,
        "memory_gib_range": [
            found.memory.total / GIB * (1 - errors.MEMORY),
            found.memory.total / GIB * (1 + errors.MEMORY),
        ],
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
        "tokens": batch * steps if tokens is None else tokens,
        "steps": steps,
        "days": middle,
        "days_range": ranges,
        "goodput": float(days.effective.mean()),
        "goodput_range": [float(q) for q in np.quantile(days.effective, (0.05, 0.95))],
        "campaign": campaign_of(days, campaign, inputs),
        "checkpoint_steps": days.interval,
        "checkpoint_gib": size / GIB,
        "checkpoint_pause_seconds": checkpoint.pause,
        "checkpoint_write_seconds": checkpoint.durable,
        "gpu_hours": hours,
        "dollars": hours * prices.price_gpu_hour,
        "dollars_range": [day * ranks * 24 * prices.price_gpu_hour for day in ranges],
        "kwh": kwh,
        "kwh_range": [day * ranks * 24 * prices.watts_gpu / 1000 for day in ranges],
        "inputs": {
            **{f.name: getattr(prices, f.name) for f in fields(prices)},
            **{f.name: getattr(inputs, f.name) for f in fields(inputs)},
        },
    }  # fmt: skip
    if prices.co2_kwh:
        told["co2_kg"] = kwh * prices.co2_kwh
        told["co2_kg_range"] = [each * prices.co2_kwh for each in told["kwh_range"]]
    return Outlook(told, [float(day) for day in days.wall / DAY], _timeline(found, model, device))


def campaign_of(found: Outcome, campaign: Campaign, inputs: Interruptions) -> dict[str, Any]:
    """Return the means of the simulated campaigns, and the spare nodes that would be enough."""
    failures = replace(campaign.failures, repair_seconds=inputs.repair_hours * 3600)
    return found.to_json() | {
        "ettr": float(found.effective.mean()),
        "spares": inputs.spares,
        "spares_needed": spares_needed(failures, campaign.nodes),
    }


def _timeline(
    found: Estimate, model: ModelDescription, device: DeviceDescription
) -> list[list[tuple[int, str, float, float]]]:
    layout = found.layout
    if layout.order is None:
        return []
    each = stages(work(model), layout, device, of_device(device))
    return layout.order.timeline([stage.seconds for stage in each])
