"""Return the value of any key of a run, before torch is imported.

The keys that only torchtitan defines are listed here with torchtitan's defaults, because its
dataclasses need torch. A test compares the list with all fields of these dataclasses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atom.recipe.run import Run

ENGINE: dict[str, Any] = {
    "training.gc_freq": 50,
    "training.gc_debug": False,
    "training.enable_cpu_offload": False,
    "training.disable_cuda_graphs": False,
    "training.mixed_precision_reduce": "float32",
    "activation_checkpoint.preserve_rng_state": True,
    "activation_checkpoint.determinism_check": "default",
    "activation_checkpoint.debug": False,
    "activation_checkpoint.force_recompute_mm_shapes_by_fqns": ["moe.router.gate"],
    "activation_checkpoint.memory_budget": 0.5,
    "activation_checkpoint.visualize_memory_budget_pareto": False,
    "checkpoint.folder": "checkpoint",
    "checkpoint.async_mode": "async",
    "checkpoint.enable_first_step_checkpoint": False,
    "checkpoint.last_save_model_only": True,
    "checkpoint.last_save_in_hf": False,
    "checkpoint.export_dtype": "float32",
    "checkpoint.load_step": -1,
    "checkpoint.load_only": False,
    "checkpoint.exclude_from_loading": [],
    "checkpoint.create_seed_checkpoint": False,
    "checkpoint.initial_load_path": None,
    "checkpoint.initial_load_model_only": True,
    "checkpoint.initial_load_in_hf": False,
    "checkpoint.initial_load_in_hf_quantized": False,
    "compile.backend": "inductor",
    "compile.enable_async_tensor_parallel": False,
    "comm.mode": "default",
    "comm.trace_buf_size": 20000,
    "comm.save_traces_folder": "comm_traces",
    "comm.save_traces_file_prefix": "rank_",
    "comm.init_timeout_seconds": 300,
    "comm.train_timeout_seconds": 100,
    "metrics.enable_tensorboard": False,
    "metrics.enable_wandb": False,
    "metrics.wandb_mode": "online",
    "metrics.save_tb_folder": "tb",
    "metrics.save_for_all_ranks": False,
    "metrics.disable_color_printing": False,
    "metrics.enable_trackio": False,
    "profiler.enable_profiling": False,
    "profiler.save_traces_folder": "profiling/traces",
    "profiler.profile_freq": 10,
    "profiler.profiler_repeat": None,
    "profiler.profiler_skip_first": None,
    "profiler.profiler_skip_first_wait": None,
    "profiler.profiler_active": 1,
    "profiler.profiler_warmup": 3,
    "profiler.enable_memory_snapshot": False,
    "profiler.memory_snapshot_freq": None,
    "profiler.save_memory_snapshot_folder": "profiling/memory_snapshot",
    "profiler.memory_snapshot_max_entries": 1_000_000,
    "debug.deterministic_warn_only": False,
    "debug.spmd_typechecking": False,
    "debug.batch_invariant": False,
    "debug.enable_structured_logging": True,
    "debug.moe_force_load_balance": False,
    "debug.detect_anomaly": False,
    "debug.print_config": False,
    "debug.save_config_file": None,
    "parallelism.spmd_backend": "spmd_types",
    "parallelism.enable_fsdp_symm_mem": False,
    "parallelism.enable_sequence_parallel": True,
    "parallelism.module_fqns_per_model_part": None,
    "parallelism.pipeline_parallel_first_stage_less_layers": 1,
    "parallelism.pipeline_parallel_last_stage_less_layers": 1,
    "parallelism.pipeline_parallel_layers_per_stage": None,
    "parallelism.pipeline_parallel_schedule_csv": "",
    "parallelism.context_parallel_load_balancer": "headtail",
    "parallelism.context_parallel_ptrr_mask_key": None,
    "parallelism.fsdp_reshard_after_forward": "default",
}
"""Key -> torchtitan's default, for each engine key in ATOM's sections."""

ATOMS: dict[str, Any] = {"checkpoint.last_save_model_only": False}
"""Defaults that ATOM's own ``train.yaml`` overrides."""


def value(run: Run, key: str) -> Any:
    """Return the run's value of ``key`` (``section.name``), or torchtitan's default."""
    section, _, name = key.partition(".")
    found = getattr(run, section)
    values = found if isinstance(found, dict) else {**found.__dict__, **(found.model_extra or {})}
    return values.get(name, ENGINE.get(key))


def default(run: Run, key: str) -> Any:
    """Return the default value of ``key``."""
    if key in ENGINE:
        return ENGINE[key]
    section, _, name = key.partition(".")
    return type(getattr(run, section)).model_fields[name].default
