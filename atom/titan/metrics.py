"""torchtitan's metrics, and beside them ``metrics.jsonl``."""

from __future__ import annotations

import logging
import math
import time
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

from atom.metrics import FILE_NAME, MetricsWriter, StepMetrics
from atom.titan import trackers


class StepMetricsProcessor(MetricsProcessor):
    """Appends a row a logged step, on the one rank that knows the loss.

    Under pipeline parallelism that is a rank of the last stage; the others log a loss of -1, which
    must reach no user.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(trackers.Trackers):
        pass

    def __init__(
        self, config: Config, *, dump_folder: str, pp_schedule: str = "1F1B", **runtime: Any
    ) -> None:
        if get_schedule_class(pp_schedule) in (ScheduleDualPipeV, ScheduleZBVZeroBubble):
            # Both put the last stage on the first rank; torchtitan knows it of one, by this name.
            pp_schedule = "ZBVZeroBubble"
        trackers.prepare(config)
        super().__init__(config, dump_folder=dump_folder, pp_schedule=pp_schedule, **runtime)
        writes = torch.distributed.get_rank() == _get_metrics_rank(
            parallel_dims=self.parallel_dims, pp_schedule=pp_schedule
        )
        place = Path(dump_folder)
        settings = runtime.get("config_dict")
        self.logger: BaseLogger = trackers.complete(
            self.logger, config, place, settings, here=writes
        )
        self._writer = MetricsWriter(place / FILE_NAME) if writes else None
        self._last: tuple[int, float] | None = None
        if torch.distributed.get_rank() != 0:
            # A line a step on each of thousands of ranks, all alike, would fill disks.
            logging.getLogger().addFilter(_is_no_step_line)

    def should_log(self, step: int) -> bool:
        if self._last is None:
            # The first step of this process: time is measured from its beginning.
            self._last = (step - 1, time.perf_counter())
        return super().should_log(step)

    def close(self) -> None:
        super().close()
        if self._writer is not None:
            self._writer.close()

    def go_back(self, step: int) -> None:
        """Measure time from now on, where ``step`` is the last one done."""
        self._last = (step, time.perf_counter())

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        # Both are reset by torchtitan's own log.
        local_tokens = self.ntokens_since_last_log
        memory = self.device_memory_monitor.get_peak_stats().max_reserved_gib
        super().log(step, global_avg_loss, global_max_loss, grad_norm, extra_metrics)
        if self._writer is None:
            return

        assert self._last is not None
        assert extra_metrics is not None
        (last_step, last_time), now = self._last, time.perf_counter()
        self._last = (step, now)
        seconds = now - last_time
        dims = self.parallel_dims
        tokens_per_second = local_tokens * dims.dp_replicate * dims.dp_shard / seconds
        mfu = None
        if math.isfinite(self.gpu_peak_flops) and not self.has_quantization:
            peak = self.gpu_peak_flops * dims.world_size
            mfu = self.num_flops_per_token * tokens_per_second / peak
        self._writer.append(
            StepMetrics(
                step=step,
                loss=global_avg_loss,
                grad_norm=grad_norm,
                lr=next(value for name, value in extra_metrics.items() if name.startswith("lr/")),
                tokens_seen=int(extra_metrics["n_tokens_seen"]),
                tokens_per_second=tokens_per_second,
                step_seconds=seconds / (step - last_step),
                memory_gib=memory,
                mfu=mfu,
            )
        )


def _is_no_step_line(record: logging.LogRecord) -> bool:
    """Return whether a record is something else than torchtitan's line of a step's metrics."""
    return (record.module, record.funcName) != ("metrics", "log")
