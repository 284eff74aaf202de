"""Define the section ``evaluation`` of a run: the tasks that its checkpoints are evaluated on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from atom.errors import UserError
from atom.recipe import scoring_layout
from atom.recipe.sections import Model

if TYPE_CHECKING:
    from atom.recipe.run import Run


LAYOUT = "evaluation.layout"


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
    layout: str | None = Field(
        default=None,
        description="ranks that share the model, as in `atom eval --layout`, such as "
        "dp_shard=2,tp=2; null: one process",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="device of the evaluations; a GPU is shared with the ranks"
    )

    def is_due(self, step: int, last: int) -> bool:
        """Return whether the checkpoint of a step is evaluated; ``last`` is the run's last step."""
        return self.interval > 0 and (step == last or step % self.interval == 0)


def check_evaluation(run: Run) -> None:
    """Refuse evaluations of checkpoints that there will not be, and impossible layouts."""
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
    if problem is not None:
        raise UserError(problem, valid=valid, key="evaluation.interval", value=interval)
    if run.evaluation.layout is not None:
        scoring_layout.parse(run.evaluation.layout, run, LAYOUT)
