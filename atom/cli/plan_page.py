"""Format a plan as a page of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atom.io.numbers import human

WIDTH = 40

NAMES = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "memory-bound operations",
    "launches": "launches",
    "optimizer": "optimizer",
    "other": "data, clipping, synchronization",
    "idle": "idle in the pipeline",
    "stragglers": "waiting for the slowest rank",
}


def page(told: Mapping[str, Any]) -> str:
    """Return the page of an outlook's values."""
    layout = told["layout"]
    degrees = [f"{n} {v}" for n, v in layout.items() if n != "checkpointing" and v > 1]
    low, high = told["step_seconds_range"]
    first, last = told["days_range"]
    cheap, dear = told["dollars_range"]
    fits = "fits" if told["fits"] else "does not fit"
    rate = told["tokens_per_second_per_gpu"]
    explained = told.get("explanation") or []
    lines = [
        *explained,
        *([""] if explained else []),
        f"plan     {told['ranks']:,} x {told['device']}, {human(told['parameters'])} parameters, "
        f"sharding {told['sharding']}",
        f"layout   {' x '.join(degrees) or 'one rank'}; activation checkpointing "
        f"{layout['checkpointing']}",
        f"memory   {fits}: {told['memory_gib']:.1f} of {told['memory_limit_gib']:.1f} GiB on the "
        "rank that needs the most",
        f"step     {told['step_seconds']:.3g} s ({low:.3g} to {high:.3g}), {rate:,.0f} tokens/s a "
        f"GPU, MFU {told['mfu']:.1%} of bfloat16's peak with causal attention "
        f"({told['mfu_full_attention']:.1%} with full)",
        *_bars(told),
        *_batches(told),
        f"run      {told['steps']:,} steps, {human(told['tokens'])} tokens: "
        f"{told['days']:.3g} days ({first:.3g} to {last:.3g}) with goodput {told['goodput']:.1%}",
        f"         a checkpoint of {told['checkpoint_gib']:,.1f} GiB each "
        f"{told['checkpoint_steps']:,} steps pauses {told['checkpoint_pause_seconds']:.2g} s; "
        f"{told['campaign']['interruptions']:,.1f} interruptions, "
        f"{told['campaign']['spares_needed']:,} spare nodes are enough",
        f"cost     {told['gpu_hours']:,.0f} GPU-hours, {told['dollars']:,.0f} dollars "
        f"({cheap:,.0f} to {dear:,.0f}), {told['kwh']:,.0f} kWh"
        + (f", {told['co2_kg']:,.0f} kg CO2" if "co2_kg" in told else ""),
    ]
    return "\n".join(lines)


def _batches(told: Mapping[str, Any]) -> list[str]:
    """Return a line about a schedule of batches, if there is one."""
    sizes = list(told["batches"])
    if len(sizes) == 1:
        return []
    return [
        f"batches  {sizes[0]:,} to {sizes[-1]:,} sequences in {len(sizes)} sizes; the step above "
        "is of the largest"
    ]


def _bars(told: Mapping[str, Any]) -> list[str]:
    """Return a bar for each part of a step of a thousandth or more."""
    parts = {NAMES[name]: seconds for name, seconds in told["parts"].items()}
    parts |= {f"{name} communication": seconds for name, seconds in told["exposed"].items()}
    whole = told["step_seconds"]
    shown = [(name, s) for name, s in parts.items() if s >= whole / 1000]
    return [
        f"         {name:32} {seconds:9.3g} s {seconds / whole:6.1%}  "
        f"{'#' * round(WIDTH * seconds / whole)}".rstrip()
        for name, seconds in sorted(shown, key=lambda item: -item[1])
    ]
