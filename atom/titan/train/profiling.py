"""Run torchtitan's profiler for ``profile.steps``, and write a table of its results."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torchtitan.config.function import Function
from torchtitan.tools.profiler import MemoryProfiler, Profiler
from torchtitan.tools.utils import device_module

from atom.errors import UserError
from atom.recipe.run import Run
from atom.run_dir import profile
from atom.titan.compat.register_ranks import GROUP_THREADS

_WARMUP = 1
"""Warm-up steps of the profiler: its start takes time."""

_groups: dict[int, str] = {}
"""Thread id -> its process group. A trace of gloo names threads only."""


class StepsProfiler(Profiler):
    """torchtitan's profiler, stopped after the last requested step."""

    @dataclass(kw_only=True, slots=True)
    class Config(Profiler.Config):
        last_step: int = 0

    memory_profiler: MemoryProfiler | None

    def __init__(self, config: Config, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        self._last_step = config.last_step
        self._step = self._global_step

    def build_torch_profiler(self, *, global_step: int, **places: Any) -> Any:
        if global_step >= self._last_step:
            return None  # the run resumes after that step
        return super().build_torch_profiler(global_step=global_step, **places)

    def build_memory_profiler(self, *, global_step: int, **places: Any) -> Any:
        if global_step >= self._last_step:
            return None
        return super().build_memory_profiler(global_step=global_step, **places)

    def step(self) -> None:
        super().step()
        self._step += 1
        if self._step >= self._last_step and self.memory_profiler is not None:
            self.memory_profiler = None  # otherwise it would write snapshots repeatedly
            device_module.memory._record_memory_history(enabled=None)


def config(run: Run, given: Profiler.Config, *, steps: int, device: str) -> Profiler.Config:
    """Return the profiler's config of a run: ``given``, unless the run sets ``profile.steps``.

    Raises:
        UserError: the run has no such steps, or also sets torchtitan's profiling keys.
    """
    window = run.profile.window
    if window is None:
        return given
    first, last = window
    if last > steps:
        raise UserError(
            f"the run ends after step {steps}", key="profile.steps", value=run.profile.steps
        )
    if given.enable_profiling or given.enable_memory_snapshot:
        raise UserError(
            "profiler.enable_profiling and profiler.enable_memory_snapshot request the same in "
            "another way",
            valid="one of the two",
            key="profile.steps",
            value=run.profile.steps,
        )
    warmup, active = min(_WARMUP, first - 1), last - first + 1
    kept = {one.name: getattr(given, one.name) for one in fields(given)}
    return StepsProfiler.Config(
        **kept
        | {
            "enable_profiling": True,
            "save_traces_folder": profile.FOLDER,
            "profile_freq": warmup + active,
            "profiler_warmup": warmup,
            "profiler_active": active,
            "profiler_skip_first": first - 1 - warmup,
            "profiler_repeat": 1,
            "enable_memory_snapshot": device == "cuda",
            "save_memory_snapshot_folder": f"{profile.FOLDER}/memory",
            "memory_snapshot_freq": last,
            "trace_post_processor": Function.Config(fn=_write_table),
        },
        last_step=last,
    )


def note_groups() -> None:
    """Start to record which threads belong to which process group."""
    build: Callable[..., Any] = GROUP_THREADS.original()

    def noted(*arguments: Any, **named: Any) -> Any:
        before = set(os.listdir("/proc/self/task"))  # noqa: PTH208 (names are all that is needed)
        built = build(*arguments, **named)
        group = built[0]
        if isinstance(group, dist.ProcessGroup):
            threads = set(os.listdir("/proc/self/task")) - before  # noqa: PTH208
            _groups.update({int(thread): group.group_desc for thread in threads})
        return built

    GROUP_THREADS.apply(noted)


def _write_table(trace: str) -> None:
    """Write a table of this rank's trace, beside the trace's folder."""
    path = Path(trace)
    target = path.parent.parent / f"rank_{dist.get_rank()}.json"
    profile.write(path, target, _groups)
