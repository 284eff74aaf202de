"""Call the callbacks of plugins at the points of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from atom.errors import RunError, UserError
from atom.plugin import TrainerCallback
from atom.run_dir import events, histograms
from atom.titan.checkpoint.callback_state import CALLBACKS, CallbackState
from atom.titan.train.averages import Averages
from atom.titan.train.callback import Callback, Decision
from atom.titan.train.metrics import StepMetricsProcessor
from atom.titan.train.validation import Validation

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer

_VALUE = re.compile(r"[A-Za-z0-9_][\w./-]*", re.ASCII)

_MOST_VALUES = 10_000
"""Values of one call: readers of ``metrics.jsonl`` refuse a line of 4 MiB."""


@dataclass(frozen=True)
class Opened:
    """A callback of a plugin, under its name in the run."""

    name: str
    callback: TrainerCallback
    averages: bool = False
    """Whether it averages the weights."""

    def to_dict(self) -> str:
        """Return what stands for the callback in torchtitan's dictionary of settings."""
        return self.name


class PluginCallback(Callback):
    """A callback that calls one of a plugin, and names it in errors."""

    def __init__(self, trainer: AtomTrainer, opened: Opened) -> None:
        super().__init__(trainer)
        self.name = f"{CALLBACKS}{opened.name}"
        self._opened = opened
        self._callback = opened.callback
        self._training = View(trainer, opened.name)
        self._averages: Averages | None = None
        if opened.averages:
            self._averages = Averages(trainer, opened.callback.averages)
        if opened.averages or type(opened.callback).state_dict is not TrainerCallback.state_dict:
            self.state_name = self.name

    @property
    def state(self) -> Stateful:
        return CallbackState(self._callback, self._called, self._averages)

    def on_built(self) -> None:
        processor = self.trainer.metrics_processor
        if isinstance(processor, StepMetricsProcessor):
            processor.also_logs.append(
                lambda step: bool(self._called("wants_row", self._callback.wants_row, step))
            )
        self._call("on_start")

    def on_gone_back(self, step: int) -> None:  # noqa: ARG002
        self._call("on_gone_back")

    def before_step(self) -> None:
        self._training.open_row()
        self._call("before_step")

    def before_forward(self, inputs: dict[str, Any]) -> None:
        self._call("before_forward", inputs)

    def after_forward(self, loss: torch.Tensor) -> None:
        self._call("after_forward", loss)

    def after_backward(self) -> None:
        self._call("after_backward")

    def before_optimizer(self, grad_norm: torch.Tensor) -> Decision:
        self._call("before_optimizer", grad_norm)
        return Decision.TAKE

    def after_optimizer(self) -> None:
        self._call("after_optimizer")
        if self._averages is not None:
            for callback in self.trainer.callbacks:
                if isinstance(callback, Validation):
                    callback.validate_average(self._opened.name, self._averages)

    def on_skipped(self) -> None:
        self._training.close_row()
        self._call("on_skipped")

    def after_step(self) -> None:
        self._training.close_row()
        self._call("after_step")

    def on_stop(self) -> None:
        self._call("on_stop")

    def close(self) -> None:
        self._call("close")

    def _call(self, point: str, *arguments: Any) -> None:
        self._called(point, getattr(self._callback, point), self._training, *arguments)

    def _called(self, point: str, code: Callable[..., Any], *arguments: Any) -> Any:
        """Call code of the plugin, without gradients.

        Raises:
            RunError: it failed; the sentence names the callback and the point.
        """
        try:
            with torch.no_grad():
                return code(*arguments)
        except (RunError, UserError):
            raise
        except Exception as error:
            where = f"{point} of step {getattr(self.trainer, 'step', 0)}"
            raise RunError(
                f"{self.name} ({type(self._callback).__module__}) failed in {where}: "
                f"{type(error).__name__}: {error}"
            ) from error


class View:
    """What a callback sees of a trainer: see :class:`atom.plugin.Training`."""

    def __init__(self, trainer: AtomTrainer, name: str) -> None:
        self._trainer = trainer
        self._name = name
        self._open = False

    @property
    def step(self) -> int:
        return int(self._trainer.step)

    @property
    def steps(self) -> int:
        return int(self._trainer.config.training.steps)

    @property
    def tokens_seen(self) -> int:
        return self._trainer.tokens_seen()

    @property
    def logged(self) -> bool:
        return bool(self._trainer.metrics_processor.should_log(self.step))

    @property
    def model_parts(self) -> Sequence[nn.Module]:
        return tuple(self._trainer.model_parts)

    @property
    def parallel_dims(self) -> Any:
        return self._trainer.parallel_dims

    @property
    def device(self) -> torch.device:
        device: torch.device = self._trainer.device
        return device

    @property
    def optimizers(self) -> Any:
        return self._trainer.optimizers

    @property
    def run_dir(self) -> Path:
        return self._trainer.run

    @property
    def probing(self) -> bool:
        if not self.parallel_dims.pp_enabled:
            return False
        schedule = self._trainer.pp_schedule
        stages = schedule._stages if hasattr(schedule, "_stages") else [schedule._stage]
        return any(stage._metadata_inference_buffer_backup is not None for stage in stages)

    @property
    def trainer(self) -> AtomTrainer:
        return self._trainer

    def log(self, values: Mapping[str, Any]) -> None:
        if not self._open:
            raise ValueError(
                "log is called outside of a step; valid: from before_step to after_optimizer"
            )
        if len(values) > _MOST_VALUES:
            raise ValueError(f"log is given {len(values):,} values; valid: {_MOST_VALUES:,}")
        _check_names(values)
        if (processor := self._writing) is not None:
            row = processor.callbacks.setdefault(self._name, {})
            row.update({key: float(value) for key, value in values.items()})

    def log_histograms(self, edges: Sequence[float], counts: Mapping[str, Sequence[float]]) -> None:
        if not self._open:
            raise ValueError(
                "log_histograms is called outside of a step; valid: from before_step to "
                "after_optimizer"
            )
        _check_names(counts)
        found = histograms.checked(edges, counts)
        if (processor := self._writing) is not None:
            processor.histograms[self._name] = found

    def alert(self, reason: str) -> None:
        if dist.get_rank() == 0:
            fields = {"callback": self._name, "step": self.step, "reason": reason}
            events.record(self.run_dir, events.ALERT, **fields)

    def stop(self, reason: str) -> NoReturn:
        raise RunError(f"{CALLBACKS}{self._name} ends the run in step {self.step}: {reason}")

    def open_row(self) -> None:
        """Accept values of a new step, and forget those of the one before."""
        self._open = True
        processor = self._trainer.metrics_processor
        if isinstance(processor, StepMetricsProcessor):
            processor.callbacks.pop(self._name, None)
            processor.histograms.pop(self._name, None)

    def close_row(self) -> None:
        """Accept no more values: the row of the step is written."""
        self._open = False

    @property
    def _writing(self) -> StepMetricsProcessor | None:
        """What writes the row of this step, if this rank writes one."""
        processor = self._trainer.metrics_processor
        if isinstance(processor, StepMetricsProcessor) and processor.writes and self.logged:
            return processor
        return None


def _check_names(values: Mapping[str, Any]) -> None:
    for key in values:
        if not isinstance(key, str) or not _VALUE.fullmatch(key):
            raise ValueError(f"{key!r} is no name of a value; valid: {_VALUE.pattern}")
