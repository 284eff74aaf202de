"""Where metrics go beside ``metrics.jsonl``: TensorBoard, and trackers of others.

A run that goes back does steps again. TensorBoard then forgets those that it was told; the others
cannot, so each point says how many steps had been discarded before it, and what it goes on from.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter
from torchtitan.components.metrics import (
    BaseLogger,
    LoggerContainer,
    MetricsProcessor,
    WandBLogger,
)

from atom.errors import RunError
from atom.run_dir import events

STEP = "step"
"""Key of the step in what W&B is told: its own steps never go back."""

DISCARDED = "steps_discarded"
"""Key of how many steps had been done and discarded before a point."""

GOES_ON_FROM = "goes_on_from"
"""Key of the step that a point's process has loaded."""


@dataclass(kw_only=True, slots=True)
class Trackers(MetricsProcessor.Config):
    """torchtitan's switches of trackers, and those that it lacks."""

    wandb_mode: Literal["online", "offline"] = "online"
    """Whether Weights & Biases sends what is logged, or keeps it for `wandb sync`"""

    enable_trackio: bool = False
    """Whether to log metrics to Trackio: TRACKIO_DIR, or else trackio/ of the run folder"""


class Tracker(BaseLogger):
    """A tracker that is told when steps are to be done again."""

    def __init__(self) -> None:
        self.discarded = 0
        """Steps that were done and do not count, since the run began."""
        self._told: dict[str, int] = {}

    def go_back(self, step: int, discarded: int) -> None:
        """Go on after ``step``: what was logged of later ones does not count any more."""
        self.discarded = discarded
        self._told = {DISCARDED: discarded, GOES_ON_FROM: step}


class TensorBoard(Tracker):
    """One folder of event files, however often the run is started."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def go_back(self, step: int, discarded: int) -> None:
        super().go_back(step, discarded)
        self.close()
        # Readers leave out what earlier files hold from that step on.
        self._writer = SummaryWriter(str(self._folder), max_queue=1000, purge_step=step + 1)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        assert self._writer is not None
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a rank that is killed writes nothing any more

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of W&B's, the same one whenever the run is started again."""

    def __init__(
        self, folder: Path, identity: str, settings: dict[str, Any] | None, *, offline: bool
    ) -> None:
        super().__init__()
        if offline:
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_RUN_ID", identity)
        os.environ.setdefault("WANDB_RESUME", "allow")
        self._inner = WandBLogger(str(folder), settings)
        self._inner.wandb.define_metric(STEP, hidden=True)
        self._inner.wandb.define_metric("*", step_metric=STEP)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        # W&B drops what is not behind its last step: count every step that was ever done.
        self._inner.log({**metrics, **self._told, STEP: step}, step + self.discarded)

    def close(self) -> None:
        self._inner.close()


class Trackio(Tracker):
    """Metrics in a database of Trackio's, which ``trackio show`` draws.

    Args:
        run: the run folder, whose name is the run's; in a place for all runs, with more behind it.
        settings: of the run, to be shown beside it.
    """

    def __init__(self, run: Path, settings: dict[str, Any] | None) -> None:
        super().__init__()
        # One place for many runs may have several of a name, which Trackio would take for one.
        shared = "TRACKIO_DIR" in os.environ
        name = f"{run.name}-{_identity(run)[:6]}" if shared else run.name
        # It looks at this once, as it is imported.
        os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "atom"),
            name=name,
            config=settings,
            resume="allow",
            embed=False,
            # torchtitan's own are among the metrics.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._run.log({**metrics, **self._told}, step=step)

    def close(self) -> None:
        self._run.finish()


class Container(LoggerContainer):
    """The trackers of a run, on a rank that feeds them."""

    _loggers: list[Tracker]

    def __init__(self) -> None:
        super().__init__()
        self.measured: dict[str, float] = {}
        """What the next row says in place of what torchtitan makes of it."""

    def start(
        self, config: Trackers, run: Path, settings: dict[str, Any] | None, rank: int | None = None
    ) -> None:
        """Start TensorBoard and W&B, as far as they are wished for.

        Args:
            config: what is wished for.
            run: the run folder.
            settings: of the run, to be shown beside it.
            rank: this one, where every rank has trackers of its own.

        Raises:
            RunError: one could not be started.
        """
        folder, identity = run / config.save_tb_folder, _identity(run)
        if rank is not None:
            folder, identity = folder / f"rank_{rank}", f"{identity}-{rank}"
        if config.enable_wandb:
            offline = config.wandb_mode == "offline"
            self._add(
                "Weights & Biases",
                lambda: WeightsAndBiases(folder, identity, settings, offline=offline),
                "`pip install wandb`, `wandb login`, metrics.wandb_mode=offline, or "
                "metrics.enable_wandb=false",
            )
        if config.enable_tensorboard:
            self.add_logger(TensorBoard(folder))

    def add_trackio(self, run: Path, settings: dict[str, Any] | None) -> None:
        """Start Trackio.

        Raises:
            RunError: it could not be started.
        """
        valid = "`pip install trackio`, or metrics.enable_trackio=false"
        self._add("Trackio", lambda: Trackio(run, settings), valid)

    def go_back(self, step: int, discarded: int) -> None:
        """Tell all that steps behind ``step`` are to be done again."""
        for tracker in self._loggers:
            tracker.go_back(step, discarded)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        told = {name: self.measured.get(name, value) for name, value in metrics.items()}
        largest = "loss_metrics/global_max_loss"
        if math.isnan(told.get(largest, 0.0)):
            del told[largest]  # not known of this step
        super().log(told, step)

    def _add(self, name: str, start: Callable[[], Tracker], valid: str) -> None:
        try:
            self.add_logger(start())
        except Exception as error:
            raise RunError(
                f"{name} could not be started ({type(error).__name__}: {error}); valid: {valid}"
            ) from error


def _identity(run: Path) -> str:
    """Return what tells a run from all others: made of its first start."""
    first = next((e for e in events.read(run) if e["event"] == events.STARTED), {})
    return hashlib.sha256(
        f"{run.name} {first.get('time')} {first.get('host')}".encode()
    ).hexdigest()[:16]
