"""Where metrics go beside ``metrics.jsonl`` and TensorBoard: to trackers of others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchtitan.components.metrics import (
    BaseLogger,
    LoggerContainer,
    MetricsProcessor,
    WandBLogger,
)

from atom.errors import RunError


@dataclass(kw_only=True, slots=True)
class Trackers(MetricsProcessor.Config):
    """torchtitan's switches of trackers, and those that it lacks."""

    wandb_mode: Literal["online", "offline"] = "online"
    """Whether Weights & Biases sends what is logged, or keeps it for `wandb sync`"""

    enable_trackio: bool = False
    """Whether to log metrics to Trackio: TRACKIO_DIR, or else trackio/ of the run folder"""


class TrackioLogger(BaseLogger):
    """Metrics in a database of Trackio's, which ``trackio show`` draws.

    Args:
        run: the run folder, whose name is the run's.
        settings: of the run, to be shown beside it.

    Raises:
        Exception: Trackio is not installed, or cannot write.
    """

    def __init__(self, run: Path, settings: dict[str, Any] | None) -> None:
        # It looks at this once, as it is imported.
        os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "atom"),
            name=run.name,
            config=settings,
            resume="allow",
            embed=False,
            # torchtitan's own are among the metrics.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


def prepare(config: Trackers) -> None:
    """Tell trackers what they read from the environment, before torchtitan starts them."""
    if config.enable_wandb and config.wandb_mode == "offline":
        os.environ["WANDB_MODE"] = "offline"


def complete(
    logger: BaseLogger, config: Trackers, run: Path, settings: dict[str, Any] | None, *, here: bool
) -> BaseLogger:
    """Return torchtitan's logger with the trackers that it lacks, on the rank that logs.

    Args:
        logger: what torchtitan has built.
        config: what is wished for.
        run: the run folder.
        settings: of the run.
        here: whether this is the rank.

    Raises:
        RunError: a tracker could not be started; torchtitan itself would only log it.
    """
    if not here:
        return logger
    container = logger if isinstance(logger, LoggerContainer) else LoggerContainer()
    if config.enable_wandb and not any(isinstance(own, WandBLogger) for own in container._loggers):
        raise RunError(
            "Weights & Biases could not be started, and the log of this rank says why; valid: "
            "`wandb login`, metrics.wandb_mode=offline, or metrics.enable_wandb=false"
        )
    if config.enable_trackio:
        try:
            container.add_logger(TrackioLogger(run, settings))
        except Exception as error:
            raise RunError(
                f"Trackio could not be started ({type(error).__name__}: {error}); valid: "
                "`pip install trackio`, or metrics.enable_trackio=false"
            ) from error
    return container
