"""Parameters of the objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1)]


class Sft(BaseModel):
    """Supervised fine-tuning: predict the answers of conversations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Name | None = Field(
        default=None,
        description="the chat template: chatml, gemma, llama3, olmo, qwen, smollm, zephyr, or the "
        "path of a Jinja file; null: the tokenizer's",
    )
    train_on: Literal["answers", "last_answer"] = Field(
        default="answers",
        description="the answers that are trained on: all of a conversation, or the last",
    )
