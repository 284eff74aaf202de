"""Compute the learning-rate schedule, and refuse invalid schedules.

Without stages it is torchtitan's: a linear warm-up, the peak, and a decay to ``min_lr_factor`` of
the peak. After the last scheduled step the rate stays constant (see :mod:`atom.titan.optim.rates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atom.errors import UserError
from atom.recipe.batches import Batches, batches
from atom.recipe.defaults import value
from atom.recipe.run import Run
from atom.recipe.training_sections import LRStage


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


@dataclass(frozen=True)
class Phase:
    """A stage of a schedule in steps; rates are fractions of the peak.

    Args:
        before: steps before it.
        steps: its steps.
        begin: the rate before it.
        end: the rate that it goes to.
        curve: that of an :class:`~atom.recipe.training_sections.LRStage`.
    """

    before: int
    steps: int
    begin: float
    end: float
    curve: str

    def at(self, step: int) -> float:
        """Return the rate at a step of the phase, counted from 1.

        The last step of a rise has its final rate; that of a fall has the rate before it, which the
        next phase begins with: a fall to 0 has no step at a rate of 0.
        """
        if self.curve == "constant" or self.begin == self.end:
            return self.end
        if self.curve == "inverse_sqrt":
            return self.begin * math.sqrt(self.before / (self.before + step))
        done = (step if self.end > self.begin else step - 1) / self.steps
        if self.curve == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.curve == "sqrt":
            done = math.sqrt(done)
        return self.begin + (self.end - self.begin) * done


def rate(phases: Sequence[Phase], step: int) -> float:
    """Return the rate at a step, counted from 1, as a fraction of the peak."""
    for phase in phases:
        if step <= phase.before + phase.steps:
            return phase.at(step - phase.before)
    return phases[-1].end


def phases(run: Run, of: Batches) -> tuple[Phase, ...]:
    """Return the phases of the schedule of a run with these batches."""
    if run.lr_scheduler.stages:
        return _of_stages(run.lr_scheduler.stages, run.training.steps, of)
    found = schedule(run)
    warmup = min(found.warmup, found.total)
    decay = min(found.decay, found.total - warmup)
    lengths = (warmup, 0.0, 1.0), (found.total - warmup - decay, 1.0, 1.0), (decay, 1.0, found.end)
    made: list[Phase] = []
    for steps, begin, end in lengths:
        before = made[-1].before + made[-1].steps if made else 0
        curve = run.lr_scheduler.decay_type if end != 1.0 else "linear"
        if steps:
            made.append(Phase(before, steps, begin, end, curve))
    return tuple(made)


def _of_stages(stages: Sequence[LRStage], steps: int, of: Batches | None) -> tuple[Phase, ...]:
    """Return the phases of stages; a length in tokens is 1 step if the batches are unknown."""
    made: list[Phase] = []
    before, begin = 0, 0.0
    for stage in stages:
        length = stage.steps
        if stage.tokens is not None:
            length = of.steps(stage.tokens, after=before) if of is not None else 1
        if length is None:
            length = max(steps - before, 0)
        end = begin if stage.to is None else stage.to
        if stage.curve == "inverse_sqrt":
            end = begin * math.sqrt(before / max(before + length, 1))
        made.append(Phase(before, length, begin, end, stage.curve))
        before, begin = before + length, end
    return tuple(made)


def check_stages(run: Run, of: Batches | None) -> None:
    """Refuse stages without a length, an effect, or a rate.

    Args:
        run: a run.
        of: its batches; None if they are unknown.

    Raises:
        UserError: names the stage at fault.
    """
    stages, steps = run.lr_scheduler.stages, run.training.steps
    found = _of_stages(stages, steps, of)
    for number, (stage, phase) in enumerate(zip(stages, found, strict=True)):
        key = f"lr_scheduler.stages.{number}"
        if stage.steps is not None and stage.tokens is not None:
            raise UserError(
                "is a second length, beside steps",
                valid="one of steps and tokens",
                key=f"{key}.tokens",
                value=stage.tokens,
            )
        if stage.steps is None and stage.tokens is None and number < len(stages) - 1:
            raise UserError(
                "has no length, which only the last stage can leave out",
                valid="steps or tokens",
                key=key,
            )
        if not phase.steps:
            raise UserError(
                f"has no steps: training.steps={steps} ends before it",
                valid=f"more than {phase.before} steps, or shorter stages",
                key=key,
            )
        if stage.curve == "inverse_sqrt" and not (phase.before and phase.begin):
            raise UserError(
                "falls from the rate of the stage before it, and there is none",
                valid="a stage before it with a rate above 0",
                key=f"{key}.curve",
                value=stage.curve,
            )
        if stage.curve == "inverse_sqrt" and stage.to is not None:
            raise UserError(
                f"has no effect with {key}.curve=inverse_sqrt, which falls with the step",
                valid="leave it out",
                key=f"{key}.to",
                value=stage.to,
            )
        if stage.curve not in ("linear", "inverse_sqrt") and stage.to is None:
            raise UserError(
                f"has no effect without {key}.to",
                valid="leave it out, or a rate to go to",
                key=f"{key}.curve",
                value=stage.curve,
            )
        if phase.end == 0 and (phase.begin == 0 or phase.curve == "constant"):
            raise UserError(
                "the learning rate is 0 throughout the stage, which would train nothing",
                valid="a rate above 0",
                key=f"{key}.to",
                value=stage.to,
            )
    last = found[-1]
    if of is None and any(stage.tokens for stage in stages):
        return
    if steps > last.before + last.steps and last.end == 0:
        raise UserError(
            f"end at step {last.before + last.steps} with a learning rate of 0, so "
            f"training.steps={steps} would train nothing from there on",
            valid="longer stages, fewer training.steps, or a last rate above 0, which is then held",
            key="lr_scheduler.stages",
        )


def check(run: Run, given: Callable[[str], str | None]) -> None:
    """Refuse phases that are longer than the whole, and steps at a rate of 0.

    Args:
        run: a run with validated ranges.
        given: returns where the user has set a key, or None. ATOM's default warm-up applies to
            runs of any length: a shorter run warms up until its end.

    Raises:
        UserError: names the key at fault.
    """
    found_batches = batches(run)
    if run.lr_scheduler.stages:
        check_stages(run, found_batches if found_batches.last > 0 else None)
        return
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
