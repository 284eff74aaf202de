"""Define the section ``evaluation`` of a run: the tasks that its checkpoints are evaluated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from atom.errors import UserError
from atom.recipe.sections import Model

if TYPE_CHECKING:
    from atom.recipe.run import Run


class Evaluation(Model):
    """Evaluations of checkpoints while training goes on: see docs/evaluation.md."""

    interval: NonNegativeInt = Field(
        default=0,
        le=10**9,
        description="steps between checkpoints that are evaluated, a multiple of "
        "checkpoint.interval; the last one is evaluated, too; 0: none",
    )
    tasks: list[str] = Field(
        default=[], description="tasks, as in `atom eval --tasks`: TASK or EVALUATOR:TASK"
    )
    limit: PositiveInt | None = Field(
        default=None, le=10**12, description="maximum number of documents of a task; null: all"
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="device of the evaluations; a GPU is shared with the ranks"
    )

    def is_due(self, step: int, last: int) -> bool:
        """Return whether the checkpoint of a step is evaluated; ``last`` is the run's last step."""
        return self.interval > 0 and (step == last or step % self.interval == 0)


def check_evaluation(run: Run) -> None:
    """Refuse evaluations of checkpoints that there will not be, and where ATOM cannot start
    them."""
    interval = run.evaluation.interval
    if not interval:
        return
    problem, valid = None, None
    if not run.evaluation.tasks:
        problem, valid = "has no effect without evaluation.tasks", "evaluation.tasks=[TASK,…], or 0"
    elif not run.checkpoint.enable:
        problem, valid = "evaluates checkpoints, and checkpoint.enable=false", "0"
    elif interval % run.checkpoint.interval:
        problem = f"is no multiple of checkpoint.interval={run.checkpoint.interval}"
        valid = f"{run.checkpoint.interval}, or a multiple"
    elif run.launcher.name is not None:
        problem = f"is for runs on this machine, and launcher={run.launcher.name} submits the run"
        valid = "0, and `atom eval` afterwards"
    if problem is not None:
        raise UserError(problem, valid=valid, key="evaluation.interval", value=interval)
