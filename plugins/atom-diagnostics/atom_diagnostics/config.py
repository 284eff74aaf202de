"""Parameters of the callbacks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NormAlert(_Model):
    """A rule for norms that run away."""

    factor: float = Field(
        default=10.0, gt=1, description="above the median of the norm's earlier measurements"
    )
    window: int = Field(default=50, ge=3, description="earlier measurements that count")
    least: int = Field(
        default=5, ge=1, description="measurements before the first alert about a factor"
    )
    stop: bool = Field(default=False, description="end the run")


class Norms(_Model):
    """Norms of each layer."""

    interval: int = Field(default=10, ge=1, description="steps between measurements")
    gradients: bool = Field(default=True, description="L2 norms of gradients, before clipping")
    weights: bool = Field(default=True, description="L2 norms of weights, before the step")
    updates: bool = Field(
        default=True,
        description="L2 norms of the change of weights; a copy of this rank's weights is kept "
        "during the optimizer step of a measurement",
    )
    activations: bool = Field(default=True, description="root mean squares of outputs")
    alert: NormAlert | None = Field(
        default=None, description="record an alert if a norm runs away; null: none"
    )


class ExpertAlert(_Model):
    """A rule for experts that get no token."""

    dead: float = Field(
        default=0.5, gt=0, le=1, description="share of a layer's experts without a token"
    )
    stop: bool = Field(default=False, description="end the run")


class Experts(_Model):
    """The routing of tokens to experts."""

    interval: int = Field(default=10, ge=1, description="steps between measurements")
    each: bool = Field(
        default=False, description="also the load of each expert: a value per layer and expert"
    )
    alert: ExpertAlert | None = Field(
        default=None, description="record an alert if experts get no token; null: none"
    )


class LogitAlert(_Model):
    """A rule for large attention logits."""

    above: float = Field(default=100.0, gt=0, description="the largest logit without an alert")
    stop: bool = Field(default=False, description="end the run")


class Attention(_Model):
    """The largest attention logit of each layer."""

    interval: int = Field(default=10, ge=1, description="steps between measurements")
    alert: LogitAlert | None = Field(
        default=None, description="record an alert if a logit is larger; null: none"
    )


class Histograms(_Model):
    """Histograms of each layer."""

    interval: int = Field(default=100, ge=1, description="steps between measurements")
    weights: bool = Field(default=True, description="of weights, before the step")
    gradients: bool = Field(default=True, description="of gradients, before clipping")
    activations: bool = Field(default=True, description="of outputs")


class Ema(_Model):
    """An exponential moving average of the weights."""

    decay: float = Field(
        default=0.999, gt=0, lt=1, description="share of the average that an update keeps"
    )
    start: int = Field(
        default=1,
        ge=1,
        description="step from which the weights are averaged; up to it, the average equals them",
    )
    interval: int = Field(default=1, ge=1, description="steps between updates")
