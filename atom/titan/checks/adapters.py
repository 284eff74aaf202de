"""Check that adapters fit a layout."""

from __future__ import annotations

from typing import Protocol

from atom.errors import UserError
from atom.plan.estimate import Estimate
from atom.plan.model import ModelDescription
from atom.titan.checks.plan import Plan


class _Plan(Plan, Protocol):
    @property
    def description(self) -> ModelDescription: ...

    @property
    def estimate(self) -> Estimate: ...


def check_stages(plan: _Plan) -> None:
    """Refuse a pipeline stage without adapters: it would have nothing to train.

    Raises:
        UserError: names the stage.
    """
    lora = plan.run.lora
    if not lora.rank or plan.config.parallelism.pipeline_parallel_degree == 1:
        return
    adapted = {each.part for each in plan.description.parameters if each.trained}
    for number, parts in enumerate(plan.estimate.layout.stages):
        if adapted.isdisjoint(parts):
            raise UserError(
                f"chooses no layer of pipeline stage {number} ({', '.join(parts)}), which would "
                "have nothing to train",
                valid="layers of every stage, or a smaller parallelism.pipeline_parallel_degree",
                key="lora.targets",
                value=", ".join(lora.targets),
            )
