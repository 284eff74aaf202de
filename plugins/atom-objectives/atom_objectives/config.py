"""Parameters of the objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from atom.recipe.idle import Idle

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


class Dpo(BaseModel):
    """Direct preference optimization: prefer the chosen answers of pairs to the rejected ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Name | None = Field(
        default=None,
        description="the chat template, as of objective=sft",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=False,
        description="how strongly the model is kept near the reference",
    )
    loss: Literal["sigmoid", "ipo"] = Field(
        default="sigmoid", description="the loss of a pair: of DPO, or of IPO"
    )
    label_smoothing: Annotated[float, Idle("loss", "ipo")] = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="the probability that a preference is wrong (loss=sigmoid)",
    )
    length_normalized: bool | None = Field(
        default=None,
        description="means over the tokens of an answer instead of sums; null: with loss=ipo",
    )


class Distill(BaseModel):
    """Distillation: imitate a teacher's predictions of the answers of conversations."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: Name = Field(
        description="folder of a run, of an export, or of a model in Hugging Face's format; it is "
        "loaded whole on one device"
    )
    top_k: int = Field(
        default=32, ge=1, le=4096, description="likeliest ids of the teacher that are kept"
    )
    temperature: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="divides the logits of both models"
    )
    hard_weight: float = Field(
        default=0.0, ge=0, lt=1, description="weight of the cross-entropy of the answers"
    )
    template: Name | None = Field(
        default=None, description="the chat template, as of objective=sft"
    )
    train_on: Literal["answers", "last_answer"] = Field(
        default="answers",
        description="the answers that are trained on: all of a conversation, or the last",
    )
