"""Send metrics to TensorBoard and to third-party experiment trackers.

After a rollback a run repeats steps. TensorBoard drops the rolled-back points; the other trackers
cannot, so each point states how many steps were discarded before it, and which step was loaded.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from atom.run_dir import evals, events
from atom.run_dir.histograms import Histogram

STEP = "step"
"""Key of the step for W&B; W&B's own step never decreases."""

EVALUATED_STEP = "evaluation/step"
"""Key of the step of an evaluated checkpoint for W&B: its results come later than its row."""

DISCARDED = "steps_discarded"
"""Key of the number of steps discarded before a point."""

GOES_ON_FROM = "goes_on_from"
"""Key of the step that the point's process has loaded."""


@dataclass(kw_only=True, slots=True)
class Trackers(MetricsProcessor.Config):
    """Settings of the trackers: torchtitan's, and those that it lacks."""

    wandb_mode: Literal["online", "offline"] = "online"
    """Whether Weights & Biases sends what is logged, or keeps it for `wandb sync`"""

    enable_trackio: bool = False
    """Whether to log metrics to Trackio: TRACKIO_DIR, or else trackio/ of the run folder"""


class Tracker(BaseLogger):
    """A tracker that handles rollbacks."""

    def __init__(self) -> None:
        self.discarded = 0
        """Number of steps discarded since the run began."""
        self._told: dict[str, int] = {}

    def go_back(self, step: int, discarded: int) -> None:
        """Continue after ``step``: values logged for later steps are void."""
        self.discarded = discarded
        self._told = {DISCARDED: discarded, GOES_ON_FROM: step}

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Log results of the checkpoint of a step, which is past."""
        self.log(dict(values), step)


class TensorBoard(Tracker):
    """One folder of event files, however often the run is started."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def go_back(self, step: int, discarded: int) -> None:
        super().go_back(step, discarded)
        self.close()
        # Readers drop the points of earlier files from that step on.
        self._writer = SummaryWriter(str(self._folder), max_queue=1000, purge_step=step + 1)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if self._writer is None:  # after the run
            self._writer = SummaryWriter(str(self._folder))
        for name, value in metrics.items():
            if isinstance(value, Histogram):
                self._histogram(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed rank flushes nothing

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _histogram(self, name: str, histogram: Histogram, step: int) -> None:
        edges, counts = histogram.edges, histogram.counts
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        assert self._writer is not None
        self._writer.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=sum(counts),
            sum=_products(counts, middles),
            sum_squares=_products(counts, [middle**2 for middle in middles]),
            bucket_limits=list(edges[1:]),
            bucket_counts=list(counts),
            global_step=step,
        )


class WeightsAndBiases(Tracker):
    """A W&B run, resumed whenever the run is started again."""

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
        self._inner.wandb.define_metric(EVALUATED_STEP, hidden=True)
        self._inner.wandb.define_metric("evaluation/*", step_metric=EVALUATED_STEP)
        self._evaluated: deque[dict[str, float]] = deque()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        # W&B drops points at or before its last step: count every step ever done.
        metrics = _with_histograms(metrics, self._inner.wandb.Histogram)
        if self._evaluated:
            metrics |= self._evaluated.popleft()
        self._inner.log({**metrics, **self._told, STEP: step}, step + self.discarded)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        # A point of its own would be one of W&B's steps, and the next row might be dropped.
        self._evaluated.append({**values, EVALUATED_STEP: step})

    def close(self) -> None:
        for values in self._evaluated:
            self._inner.wandb.log(values)
        self._inner.close()


class Trackio(Tracker):
    """Metrics in a Trackio database, which ``trackio show`` displays.

    Args:
        run: the run folder; its name is the run's name, extended if a place is shared by all runs.
        settings: the run's settings, displayed beside it.
    """

    def __init__(self, run: Path, settings: dict[str, Any] | None) -> None:
        super().__init__()
        # In a shared place several runs may have the same name, and Trackio would merge them.
        shared = "TRACKIO_DIR" in os.environ
        name = f"{run.name}-{_identity(run)[:6]}" if shared else run.name
        # Trackio reads this once, on import.
        os.environ.setdefault("TRACKIO_DIR", str(run / "trackio"))
        import trackio

        self._histogram = trackio.Histogram
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "atom"),
            name=name,
            config=settings,
            resume="allow",
            embed=False,
            # torchtitan's metrics include those of the GPU.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: dict[str, Any], step: int) -> None:
        metrics = _with_histograms(metrics, self._histogram)
        self._run.log({**metrics, **self._told}, step=step)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Container(LoggerContainer):
    """The trackers of a run, on a rank that feeds them."""

    _loggers: list[Tracker]

    def __init__(self) -> None:
        super().__init__()
        self.measured: dict[str, float] = {}
        """Values that replace torchtitan's in the next row."""
        self.histograms: dict[str, Histogram] = {}
        """The histograms of the next row, by the name that trackers get."""
        self._arriving: evals.Arriving | None = None

    def start(
        self, config: Trackers, run: Path, settings: dict[str, Any] | None, rank: int | None = None
    ) -> None:
        """Start TensorBoard and W&B, if they are enabled.

        Args:
            config: which trackers are enabled.
            run: the run folder.
            settings: the run's settings, displayed beside it.
            rank: this rank, if every rank has its own trackers.

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

    def follow(self, run: Path) -> None:
        """Log results of evaluations that are added to the run folder from now on."""
        if self._loggers:
            self._arriving = evals.Arriving(run)

    def evaluated(self, results: evals.Tracked) -> None:
        """Log results of evaluations of checkpoints."""
        for step, values in sorted(results.items()):
            for tracker in self._loggers:
                tracker.evaluated(step, values)

    def close(self) -> None:
        if self._arriving is not None:
            self.evaluated(self._arriving.new())
            self._arriving.close()
        super().close()

    def go_back(self, step: int, discarded: int) -> None:
        """Tell all trackers that steps after ``step`` will be repeated."""
        for tracker in self._loggers:
            tracker.go_back(step, discarded)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if self._arriving is not None:
            self.evaluated(self._arriving.new())
        told = {name: self.measured.get(name, value) for name, value in metrics.items()}
        largest = "loss_metrics/global_max_loss"
        if math.isnan(told.get(largest, 0.0)):
            del told[largest]  # unknown for this step
        trimmed = {name: histogram.trimmed() for name, histogram in self.histograms.items()}
        told |= {name: histogram for name, histogram in trimmed.items() if histogram is not None}
        super().log(told, step)

    def _add(self, name: str, start: Callable[[], Tracker], valid: str) -> None:
        try:
            self.add_logger(start())
        except Exception as error:
            raise RunError(
                f"{name} could not be started ({type(error).__name__}: {error}); valid: {valid}"
            ) from error


def _products(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def _with_histograms(metrics: dict[str, Any], make: Callable[..., Any]) -> dict[str, Any]:
    """Return metrics with the histograms of a tracker.

    Args:
        metrics: name -> a number or a histogram.
        make: the tracker's class, which takes NumPy's pair of counts and edges.
    """
    return {
        name: make(np_histogram=(list(value.counts), list(value.edges)))
        if isinstance(value, Histogram)
        else value
        for name, value in metrics.items()
    }


def _identity(run: Path) -> str:
    """Return a unique id of the run, derived from its first start."""
    first = next((e for e in events.read(run) if e["event"] == events.STARTED), {})
    return hashlib.sha256(
        f"{run.name} {first.get('time')} {first.get('host')}".encode()
    ).hexdigest()[:16]
