"""Compute the phases of the learning-rate schedule, and refuse invalid schedules.

It is torchtitan's: a linear warm-up, the peak, and a decay to ``min_lr_factor`` of the peak. After
the last scheduled step the rate stays constant (see :mod:`atom.titan.optim.rates`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atom.errors import UserError
from atom.recipe.defaults import value
from atom.recipe.run import Run


@dataclass(frozen=True)
class Schedule:
    """Phases of a schedule in steps; between warm-up and decay the rate is at its peak.

    Args:
        total: number of all steps.
        warmup: number of steps at the start.
        decay: number of steps at the end.
        end: final rate as a fraction of the peak.
    """

    total: int
    warmup: int
    decay: int
    end: float


def schedule(run: Run) -> Schedule:
    """Return the schedule of a run, unchecked: its phases can be longer than the whole."""
    total = int(value(run, "lr_scheduler.total_steps") or value(run, "training.steps"))
    warmup, ratio = (
        value(run, "lr_scheduler.warmup_steps"),
        value(run, "lr_scheduler.decay_ratio"),
    )
    decay = max(total - int(warmup), 0) if ratio is None else round(total * float(ratio))
    end = float(value(run, "lr_scheduler.min_lr_factor")) if decay else 1.0
    return Schedule(total, int(warmup), decay, end)


def check(run: Run, given: Callable[[str], str | None]) -> None:
    """Refuse phases that are longer than the whole, and steps at a rate of 0.

    Args:
        run: a run with validated ranges.
        given: returns where the user has set a key, or None. ATOM's default warm-up applies to
            runs of any length: a shorter run warms up until its end.

    Raises:
        UserError: names the key at fault.
    """
    found, steps = schedule(run), int(value(run, "training.steps"))
    ratio = value(run, "lr_scheduler.decay_ratio")
    whole = f"the schedule's {found.total} steps"
    if found.warmup > found.total and given("lr_scheduler.warmup_steps"):
        raise UserError(
            f"is longer than {whole}",
            valid=f"at most {found.total}, or a longer lr_scheduler.total_steps",
            key="lr_scheduler.warmup_steps",
            value=found.warmup,
        )
    if ratio and not found.decay:
        raise UserError(
            f"is less than one of {whole}",
            valid=f"0 for no decay, or at least {1 / found.total:.3g}",
            key="lr_scheduler.decay_ratio",
            value=ratio,
        )
    if ratio and found.warmup + found.decay > found.total:
        room = max(found.total - found.warmup, 0)
        raise UserError(
            f"is {found.decay} of {whole}, and lr_scheduler.warmup_steps={found.warmup} leaves "
            f"{room}",
            valid=f"at most {int(1000 * room / found.total) / 1000}, or fewer warm-up steps",
            key="lr_scheduler.decay_ratio",
            value=ratio,
        )
    if steps > found.total and found.end == 0:
        raise UserError(
            f"the learning rate is 0 after that step, so training.steps={steps} would train "
            "nothing from there on",
            valid=f"at least {steps}, fewer training.steps, or an "
            "lr_scheduler.min_lr_factor above 0, which is then held",
            key="lr_scheduler.total_steps",
            value=found.total,
        )
