"""Write metrics to torchtitan's loggers and to ``metrics.jsonl``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.pipelining.schedules import (
    ScheduleDualPipeV,
    ScheduleZBVZeroBubble,
    get_schedule_class,
)
from torchtitan.components.metrics import BaseLogger, MetricsProcessor, _get_metrics_rank
from torchtitan.distributed import ParallelDims

from atom.run_dir.histograms import Histograms
from atom.run_dir.metrics import FILE_NAME, CallbackValues, MetricsWriter, StepMetrics
from atom.run_dir.validated import SetResult, scalars
from atom.titan.compat import log_filters
from atom.titan.train import trackers


class StepMetricsProcessor(MetricsProcessor):
    """A metrics processor that appends a row per logged step, on one rank that knows the loss.

    Under pipeline parallelism that is a rank of the last stage; the other ranks log a loss of -1,
    which must not reach users.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(trackers.Trackers):
        pass

    def __init__(
        self, config: Config, *, dump_folder: str, pp_schedule: str = "1F1B", **runtime: Any
    ) -> None:
        if get_schedule_class(pp_schedule) in (ScheduleDualPipeV, ScheduleZBVZeroBubble):
            # Both place the last stage on the first rank; torchtitan knows this of one schedule, by
            # this name.
            pp_schedule = "ZBVZeroBubble"
        self._trackers = trackers.Container()
        super().__init__(config, dump_folder=dump_folder, pp_schedule=pp_schedule, **runtime)
        writes = torch.distributed.get_rank() == _get_metrics_rank(
            parallel_dims=self.parallel_dims, pp_schedule=pp_schedule
        )
        place = Path(dump_folder)
        settings = runtime.get("config_dict")
        if writes and config.enable_trackio:
            self._trackers.add_trackio(place, settings)
        if writes:
            self._trackers.follow(place)
        self.data: str | None = None
        """Digest of the tokens of the step that is logged next."""
        self.stream: str | None = None
        """Digest of the tokens of all steps up to it."""
        self.apart: dict[str, float] = {}
        """Losses of the step that is logged next, beside its loss: z_loss, mtp_loss."""
        self.last_step: int | None = None
        """The run's last step, which is always logged."""
        self.also_logs: list[Callable[[int], bool]] = []
        """Functions that return whether a step is logged, beside every ``log_freq``-th."""
        self.objective: dict[str, float] = {}
        """The values of the objective for the step that is logged next."""
        self.callbacks: CallbackValues = {}
        """The values of callbacks for the step that is logged next; empty on ranks that do not
        write."""
        self.histograms: dict[str, Histograms] = {}
        """The histograms of callbacks for the step that is logged next, as ``callbacks``."""
        self.writes = writes
        """Whether this rank writes rows."""
        self._validation: dict[str, SetResult] | None = None
        self._writer = MetricsWriter(place / FILE_NAME) if writes else None
        self._last: tuple[int, int, float] | None = None
        """Step, tokens and time of the last row, from which the next row's rates count."""
        if torch.distributed.get_rank() != 0:
            log_filters.hide_step_lines()

    def _build_metric_logger(
        self,
        *,
        config: MetricsProcessor.Config,
        parallel_dims: ParallelDims,
        dump_folder: str,
        pp_schedule: str,
        config_dict: dict[str, Any] | None = None,
        **_: Any,
    ) -> BaseLogger:
        """Return the trackers on the ranks that feed them.

        torchtitan's keep rolled-back steps, and only log a warning if one cannot start.
        """
        assert isinstance(config, trackers.Trackers)
        rank = torch.distributed.get_rank()
        if config.save_for_all_ranks:
            self._trackers.start(config, Path(dump_folder), config_dict, rank)
        elif rank == _get_metrics_rank(parallel_dims=parallel_dims, pp_schedule=pp_schedule):
            self._trackers.start(config, Path(dump_folder), config_dict)
        return self._trackers

    def should_log(self, step: int) -> bool:
        if step == self.last_step or super().should_log(step):
            return True
        return any(logs(step) for logs in self.also_logs)

    def validated(self, results: dict[str, SetResult], *, seconds: float) -> None:
        """Add results to the row that is logged next.

        Args:
            results: of the validation sets, by name.
            seconds: the time that they took, which is not training.
        """
        self._validation = (self._validation or {}) | results
        if self._last is not None:
            step, tokens, begun = self._last
            self._last = (step, tokens, begun + seconds)

    def close(self) -> None:
        super().close()
        if self._writer is not None:
            self._writer.close()

    def go_back(self, step: int, tokens_seen: int, discarded: int) -> None:
        """Discard logged values after ``step``, and restart the rates.

        Args:
            step: the last valid step.
            tokens_seen: tokens up to that step, over all ranks.
            discarded: number of steps discarded since the run began.
        """
        if self._writer is not None:
            self._writer.go_back(step)
        self._trackers.go_back(step, discarded)
        self.data_loading_times.clear()
        self._last = (step, tokens_seen, time.perf_counter())

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        assert self._last is not None
        assert extra_metrics is not None
        last_step, last_tokens, last_time = self._last
        tokens_seen, now = int(extra_metrics["n_tokens_seen"]), time.perf_counter()
        self._last = (step, tokens_seen, now)
        seconds, ranks = now - last_time, self.parallel_dims.world_size
        tokens_per_second = (tokens_seen - last_tokens) / seconds
        mfu = None
        if math.isfinite(self.gpu_peak_flops) and not self.has_quantization:
            peak = self.gpu_peak_flops * ranks
            mfu = self.num_flops_per_token * tokens_per_second / peak
        results, self._validation = self._validation, None
        row = StepMetrics(
            step=step,
            loss=global_avg_loss,
            **self.apart,
            grad_norm=grad_norm,
            lr=next(value for name, value in extra_metrics.items() if name.startswith("lr/")),
            tokens_seen=tokens_seen,
            tokens_per_second=tokens_per_second,
            step_seconds=seconds / (step - last_step),
            memory_gib=self.device_memory_monitor.get_peak_stats().max_reserved_gib,
            mfu=mfu,
            data=self.data,
            stream=self.stream,
            data_seconds=sum(self.data_loading_times) / (step - last_step),
            callbacks={name: dict(values) for name, values in self.callbacks.items() if values}
            or None,
            histograms=dict(self.histograms) or None,
            validation=results,
            objective=dict(self.objective) or None,
        )
        # torchtitan's value is wrong if rows are not log_freq steps apart.
        flops = self.num_flops_per_token * tokens_per_second / ranks
        self._trackers.measured = {
            "throughput(tps)": tokens_per_second / ranks,
            "tflops": flops / 1e12,
            "time_metrics/end_to_end(s)": row.step_seconds,
            **({} if mfu is None else {"mfu(%)": 100 * mfu}),
        }
        extra_metrics = (
            extra_metrics
            | dict(scalars(results or {}))
            | self.apart
            | {f"objective/{name}": value for name, value in self.objective.items()}
            | {
                f"callbacks/{name}/{key}": value
                for name, values in self.callbacks.items()
                for key, value in values.items()
            }
        )
        self._trackers.histograms = {
            f"callbacks/{name}/{key}": histogram
            for name, histograms in self.histograms.items()
            for key, histogram in histograms.each()
        }
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)
        if self._writer is not None:
            self._writer.append(row)
