"""Compare the simulation of failures with published runs: interruptions, useful time, intervals.

    python benchmarks/failures.py [--markdown FILE]

It takes seconds, on one core. A row is a published run; the defaults of ``atom/plan/failures.py``
are the same for all rows, and none is fitted to a row.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np

import atom
from atom.errors import UserError
from atom.plan import failures as published
from atom.plan.campaign import Campaign, best_interval, interval_steps, simulate
from atom.plan.failures import DAY, Checkpoint, Failures, asynchronous, blocking, daly, young


@dataclass(frozen=True)
class Counted:
    """A run or a cluster with counted interruptions; ``low`` and ``high`` if a range is printed."""

    what: str
    devices: float
    days: float
    low: float
    high: float
    source: str


COUNTED = [
    Counted("Llama 3, unexpected", 16384, 54, 419, 419, "arXiv 2407.21783"),
    Counted("Llama 3, all", 16384, 54, 466, 466, "arXiv 2407.21783"),
    Counted("BLOOM, GPUs", 384, 105, 15, 30, "1 to 2 a week, huggingface.co/blog"),
    Counted("OPT-175B", 992, 60, 105, 105, "35 manual and 70 others, arXiv 2205.01068"),
    Counted("H200 cloud, 4 months", 1600, 120, 205, 205, "Crusoe (secondary)"),
    Counted("H200 cloud, 2 runs", 1600, 2.3, 0, 0, "pytorch.org"),
    Counted("IBM 7B on A100", 128, 49, 0, 0, "pytorch.org"),
    Counted("ByteRobust, 1,000 GPUs", 1000, 10, 28, 28, "arXiv 2509.16293, development included"),
    Counted("RSC-1, 16,384 GPUs", 16384, 1, 24 / 1.8, 24 / 1.8, "projected, arXiv 2410.21680"),
    Counted("RSC-1, 1,024 GPUs, hardware", 1024, 1, 128 * 6.5e-3, 128 * 6.5e-3, "arXiv 2410.21680"),
    Counted("RSC-1, 1,024 GPUs, all causes", 1024, 1, 24 / 7.9, 24 / 7.9, "arXiv 2410.21680"),
    Counted("FT-HSDP, 32,768 GPUs", 32768, 1, 9.4, 9.4, "2.3e-3 a node-day, arXiv 2602.00277"),
    Counted("FT-HSDP, 100,000 GPUs", 100000, 1, 80, 80, "every 18 minutes, arXiv 2602.00277"),
]
# Every 1,024 H100s of a buyer's guide: one interruption in 46.9 to 117.2 hours (secondary).
COUNTED.append(Counted("1,024 H100s", 1024, 1, 24 / 117.2, 24 / 46.9, "SemiAnalysis (secondary)"))


@dataclass(frozen=True)
class Useful:
    """A run with a published share of useful time.

    ``checkpoint`` and ``step_seconds`` are assumed where ``assumed`` says so.
    """

    what: str
    devices: float
    days: float
    least: float
    most: float
    source: str
    step_seconds: float
    checkpoint: Checkpoint
    failures: Failures = field(default_factory=Failures)
    interval: int | None = None
    assumed: str = ""


LLAMA_405B = 5.2e12
"""Bytes of a checkpoint: NVIDIA/dgxc-benchmarking, llama3.1/README.md."""

USEFUL = [
    Useful("Llama 3 405B", 16384, 54, 0.90, 1, "arXiv 2407.21783: > 90 %", 6.6,
           blocking(LLAMA_405B, write=2e12), Failures(rate=466 / 54 / 2048),
           assumed="6.6 s a step (16 M tokens, 400 TFLOP/s a GPU), best interval"),
    Useful("MegaScale", 10240, 30, 0.90, 1, "arXiv 2402.15627: > 90 %", 6.0,
           blocking(13 * 175e9), assumed="175B, 30 days, default rate"),
    Useful("RSC, largest runs", 1024, 10, 0.85, 0.95, "arXiv 2410.21680: about 0.9", 5.0,
           blocking(13 * 70e9), Failures(rate=24 / 7.9 / 128),
           assumed="70B, rate of all causes at 1,024 GPUs"),
    Useful("ByteRobust", 9600, 90, 0.97, 0.97, "arXiv 2509.16293", 10.0,
           Checkpoint(0.09, 10.0, 60.0), interval=1,
           assumed="10 s a step with 0.9 % of it for its checkpoint, default rate"),
    Useful("OLMo Hybrid, 512 B200s", 512, 6.19, 0.97, 0.97, "Lambda (secondary)", 5.0,
           blocking(13 * 7e9), assumed="7B, default rate"),
    Useful("FT-HSDP, synchronous", 100000, 10, 0.44, 0.44, "arXiv 2602.00277", 10.0,
           Checkpoint(0.5, 10.0, 0.0),
           Failures(rate=80 / 12500, detection=0, diagnosis=0, restart=600, manual_share=0),
           assumed="every 18 minutes, 10 minutes of stall"),
    Useful("FT-HSDP, with replicas", 100000, 10, 0.80, 0.80, "arXiv 2602.00277", 10.0,
           Checkpoint(0.5, 10.0, 0.0),
           Failures(rate=80 / 12500, detection=0, diagnosis=0, restart=180, manual_share=0),
           assumed="every 18 minutes, 3 minutes of stall"),
]  # fmt: skip

INTERVALS = [
    ("405B, 16,384 GPUs, blocking, 100 GB/s", 2048, blocking(LLAMA_405B), 6.6),
    ("405B, 16,384 GPUs, blocking, 2 TB/s", 2048, blocking(LLAMA_405B, write=2e12), 6.6),
    ("405B, 16,384 GPUs, asynchronous", 2048, asynchronous(LLAMA_405B, 16384), 6.6),
    ("70B, 1,024 GPUs, blocking", 128, blocking(13 * 70e9), 5.0),
    ("8B, 256 GPUs, blocking", 32, blocking(13 * 8e9), 2.0),
]


def counted(row: Counted) -> tuple[float, float, float]:
    """Return the mean and the 5 % and 95 % quantiles of interruptions by the default rate."""
    known = Failures().uncertain()
    node_days = row.devices / published.DEVICES_PER_NODE * row.days
    random = np.random.default_rng(0)
    rates = known.rate * np.exp(known.sigma * random.standard_normal(20_000))
    drawn = random.poisson(rates * node_days)
    low, high = np.quantile(drawn, (0.05, 0.95))
    return known.rate * node_days, float(low), float(high)


def useful(row: Useful, factor: float = 1.0) -> float:
    """Return the simulated share of useful time, at ``factor`` times the row's rate."""
    campaign = Campaign(
        row.step_seconds,
        max(round(row.days * DAY / row.step_seconds), 1),
        row.devices / published.DEVICES_PER_NODE,
        row.checkpoint,
        row.interval,
        replace(row.failures, rate=row.failures.rate * factor),
    )
    try:
        return float(simulate(campaign, campaigns=100).effective.mean())
    except UserError:  # at this rate the run would not end
        return 0.0


def rows() -> list[str]:
    """Return the tables in Markdown."""
    out = [
        "## Interruptions",
        "",
        f"Default rate {published.RATE.value:g} a node-day; 90 % of rates within "
        f"{published.RATE.high / published.RATE.low:.1f}x.",
        "",
        "| run | node-days | published | default, 5 % to 95 % | within | source |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in COUNTED:
        mean, low, high = counted(row)
        told = f"{row.low:.3g}" if row.low == row.high else f"{row.low:.3g} to {row.high:.3g}"
        within = row.high >= low and row.low <= high
        out.append(
            f"| {row.what} | {row.devices / 8 * row.days:,.0f} | {told} | "
            f"{mean:.3g}, {low:.3g} to {high:.3g} | {'yes' if within else 'no'} | {row.source} |"
        )
    out += [
        "",
        "## Useful time (ETTR)",
        "",
        "| run | published | simulated | at 2.2x to 0.6x of the rate | source | assumed |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for one in USEFUL:
        mean, low, high = (
            useful(one, end / published.RATE.value)
            for end in (published.RATE.value, published.RATE.high, published.RATE.low)
        )
        told = f"{one.least:.2f}"
        if one.most > one.least:
            told = f"> {told}" if one.most == 1 else f"{told} to {one.most:.2f}"
        out.append(
            f"| {one.what} | {told} | {mean:.3f} | {low:.2f} to {high:.2f} | {one.source} | "
            f"{one.assumed} |"
        )
    out += [
        "",
        "## Seconds between checkpoints",
        "",
        "| job | pause, s | Young | Daly | NVIDIA | used | by simulation | useful time |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for what, nodes, checkpoint, step in INTERVALS:
        known = Failures()
        between = known.between(nodes)
        campaign = Campaign(step, round(30 * DAY / step), nodes, checkpoint)
        best = best_interval(campaign)
        share = simulate(replace(campaign, interval=best), campaigns=200).effective.mean()
        out.append(
            f"| {what} | {checkpoint.pause:.3g} | {young(between, checkpoint.pause):.0f} | "
            f"{daly(between, checkpoint.pause):.0f} | "
            f"{nvidia(between, known.restart + checkpoint.load, checkpoint.pause):.0f} | "
            f"{interval_steps(campaign) * step:.0f} | {best * step:.0f} | {share:.3f} |"
        )
    start = time.perf_counter()
    campaign = Campaign(10.0, round(90 * DAY / 10), 1280, blocking(LLAMA_405B))
    found = simulate(campaign)
    seconds = time.perf_counter() - start
    early, middle, late = found.days(0.05, 0.5, 0.95)
    out += [
        "",
        f"405B on 10,240 ranks, 90 days of training: 1,000 campaigns in {seconds:.2f} s; they "
        f"end on day {early:.1f}, {middle:.1f}, {late:.1f} (5 %, 50 %, 95 %), after "
        f"{found.interruptions.mean():.0f} interruptions; useful time "
        f"{found.effective.mean():.3f}.",
    ]
    return out


def nvidia(between: float, restart: float, pause: float) -> float:
    """Return the interval of arXiv 2410.18124, from the begin of a checkpoint to the next."""
    return pause + math.sqrt(2 * (between + restart) * pause + pause**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file, too")
    options = parser.parse_args()
    text = "\n".join(rows())
    print(text)
    if options.markdown:
        where = f"{date.today()}, atom-train {atom.__version__}, numpy {np.__version__}."
        options.markdown.write_text(
            f"# Failures, simulated and published\n\n`python benchmarks/failures.py`: {where}\n\n"
            f"{text}\n"
        )


if __name__ == "__main__":
    main()
