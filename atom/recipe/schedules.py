"""The learning rate's schedule: how long its parts are, and what no schedule can be.

It is torchtitan's: a linear warm-up, the peak, and a decay to ``min_lr_factor`` of the peak. After
the last scheduled step the rate stays what it is there (see :mod:`atom.titan.optim.rates`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atom.errors import UserError
from atom.recipe.defaults import value
from atom.recipe.run import Run


@dataclass(frozen=True)
class Schedule:
    """Steps of a schedule's parts; what is neither warm-up nor decay is at the peak.

    Args:
        total: all of them.
        warmup: the first.
        decay: the last.
        end: the rate after them, as a share of the peak.
    """

    total: int
    warmup: int
    decay: int
    end: float


def schedule(run: Run) -> Schedule:
    """Return the schedule of a run, whose parts may be longer than the whole."""
    total = int(value(run, "lr_scheduler.total_steps") or value(run, "training.steps"))
    warmup, ratio = (
        value(run, "lr_scheduler.warmup_steps"),
        value(run, "lr_scheduler.decay_ratio"),
    )
    decay = max(total - int(warmup), 0) if ratio is None else round(total * float(ratio))
    end = float(value(run, "lr_scheduler.min_lr_factor")) if decay else 1.0
    return Schedule(total, int(warmup), decay, end)


def check(run: Run, given: Callable[[str], str | None]) -> None:
    """Refuse parts that are longer than the whole, and steps at a rate of 0.

    Args:
        run: its numbers in their ranges.
        given: tells whether the user has set a key. ATOM's own warm-up is for runs of any length:
            a shorter one warms up throughout.

    Raises:
        UserError: names the key at fault.
    """
    found, steps = schedule(run), int(value(run, "training.steps"))
    ratio = value(run, "lr_scheduler.decay_ratio")
    whole = f"the schedule's {found.total} steps"
    if found.warmup > found.total and given("lr_scheduler.warmup_steps"):
        raise UserError(
            f"is longer than {whole}; valid: at most {found.total}, or a longer "
            "lr_scheduler.total_steps",
            key="lr_scheduler.warmup_steps",
            value=found.warmup,
        )
    if ratio and not found.decay:
        raise UserError(
            f"is less than one of {whole}; valid: 0 for no decay, or at least "
            f"{1 / found.total:.3g}",
            key="lr_scheduler.decay_ratio",
            value=ratio,
        )
    if ratio and found.warmup + found.decay > found.total:
        room = max(found.total - found.warmup, 0)
        raise UserError(
            f"is {found.decay} of {whole}, and lr_scheduler.warmup_steps={found.warmup} leaves "
            f"{room}; valid: at most {int(1000 * room / found.total) / 1000}, or fewer warm-up "
            "steps",
            key="lr_scheduler.decay_ratio",
            value=ratio,
        )
    if steps > found.total and found.end == 0:
        raise UserError(
            f"the learning rate is 0 after that step, so training.steps={steps} would train "
            f"nothing from there on; valid: at least {steps}, fewer training.steps, or an "
            "lr_scheduler.min_lr_factor above 0, which is then held",
            key="lr_scheduler.total_steps",
            value=found.total,
        )
