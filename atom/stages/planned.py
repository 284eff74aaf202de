"""Plan a recipe: what each stage that trains will take, by ``atom plan``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.table import Table
from rich.text import Text

from atom.errors import UserError
from atom.io.numbers import human
from atom.stages.arguments import arguments
from atom.stages.checks import CheckError, as_if_made, output
from atom.stages.composed import Composed

_AT_ONCE = 4
_SUMS = ("days", "gpu_hours", "dollars", "kwh")


def planned(made: Composed, words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the plan of each stage that trains, as ``atom plan --json`` prints it.

    Args:
        made: the recipe.
        words: more overrides of every stage: ``device=h100``, ``plan.price_gpu_hour=2``.

    Raises:
        CheckError: stages cannot be planned.
    """
    names = [name for name, stage in made.stages.items() if stage.command == "train"]
    words = list(words)
    with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as threads:
        found = dict(zip(names, threads.map(lambda n: _plan(made, n, words), names), strict=True))
    if problems := [plan for plan in found.values() if isinstance(plan, str)]:
        raise CheckError(problems)
    return {name: plan for name, plan in found.items() if isinstance(plan, dict)}


def _plan(made: Composed, name: str, words: list[str]) -> dict[str, Any] | str:
    try:
        own = arguments(as_if_made(made, name), name)[1:]
        printed = output(made, name, ["plan", "--json", *_planned(made, name, own, words)])
    except UserError as error:
        return f"stage {name}: {error.sentence()}"
    plan: dict[str, Any] = json.loads(printed)
    return plan


def _planned(made: Composed, name: str, own: list[str], words: list[str]) -> list[str]:
    """Return the overrides of a plan: ``own`` of the stage, and ``words`` of the user."""
    own = [w for w in own if not w.startswith(("run.dir=", "launch.", "launcher", "device="))]
    ranks = made.stages[name].overrides.get("launch.ranks", 1)
    if not any(word.startswith("world_size=") for word in words):
        own.append(f"world_size={ranks}")
    device = made.stages[name].overrides.get("device")
    if device is not None and not any(word.startswith("device=") for word in words):
        own.append(f"device={device}")
    return [*own, *words]


def table(plans: dict[str, dict[str, Any]]) -> Table:
    """Return a row for each stage and their sum; days of stages one after the other."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("stage")
    for title in ("ranks", "tokens", "memory", "step", "days", "GPU-hours", "dollars", "kWh"):
        found.add_column(title, justify="right")
    found.add_column("")
    for name, plan in plans.items():
        low, high = plan["days_range"]
        found.add_row(
            name, f"{plan['ranks']:,}", human(plan["tokens"]), f"{plan['memory_gib']:.1f} GiB",
            f"{plan['step_seconds']:.3g} s", *(_number(plan[key]) for key in _SUMS),
            Text(
                f"{_number(low)} to {_number(high)} days" if plan["fits"] else "does not fit",
                "dim" if plan["fits"] else "red",
            ),
        )  # fmt: skip
    sums = [sum(plan[key] for plan in plans.values()) for key in _SUMS]
    tokens = human(sum(plan["tokens"] for plan in plans.values()))
    found.add_row("all", "", tokens, "", "", *map(_number, sums), "", style="bold")
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
