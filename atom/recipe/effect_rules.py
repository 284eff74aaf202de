"""Define which settings have no effect in combination with which others, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from atom.errors import shown
from atom.recipe import defaults
from atom.recipe.run import Run


@dataclass(frozen=True)
class Situation:
    """The known properties of the machine and layout of a run.

    Args:
        degrees: degrees of parallelism, as far as known.
        device: ``cpu`` or ``cuda``; None if unknown.
    """

    degrees: Mapping[str, int] = field(default_factory=dict)
    device: str | None = None


class Seen:
    """A view of a run's settings for the rules below."""

    def __init__(self, run: Run, where: Situation) -> None:
        self.run = run
        self.where = where

    def __getitem__(self, key: str) -> object:
        return defaults.value(self.run, key)

    def one(self, *names: str) -> str | None:
        """Return the reason if all these degrees are known to be 1."""
        degrees = [f"{name}_degree" for name in names]
        if any(self.where.degrees.get(name) != 1 for name in degrees):
            return None
        return "with " + " and ".join(f"parallelism.{name}=1" for name in degrees)

    def has(self, key: str, *values: object) -> str | None:
        """Return the reason if a key has one of these values."""
        found = self[key]
        return f"with {key}={shown(found)}" if found in values else None


Reason = Callable[[Seen], str | None]


def _with(key: str, *values: object) -> Reason:
    return lambda seen: seen.has(key, *values)


def _without(*names: str) -> Reason:
    return lambda seen: seen.one(*names)


def _faults(*kinds: str) -> Reason:
    """Return a rule that applies if no fault kind is set to a value other than ``kinds``."""

    def reason(seen: Seen) -> str | None:
        found = [seen.has(f"faults.{name}", *kinds) for name in ("spike", "non_finite")]
        return (
            " and ".join([str(found[0]), str(found[1]).removeprefix("with ")])
            if all(found)
            else None
        )

    return reason


def _no_initial_weights(seen: Seen) -> str | None:
    places = (seen["checkpoint.initial_load"], seen["checkpoint.initial_load_path"])
    return None if any(places) else "without checkpoint.initial_load"


def _no_traces(seen: Seen) -> str | None:
    quiet = seen.where.device == "cpu" and "trace_buf_size" not in seen.run.comm
    if quiet:
        return "with comm.trace_buf_size=0, the default on a CPU"
    return seen.has("comm.trace_buf_size", 0)


def _no_tracker(seen: Seen) -> str | None:
    if seen["metrics.enable_tensorboard"] or seen["metrics.enable_wandb"]:
        return None
    return "without metrics.enable_tensorboard or metrics.enable_wandb"


def _profiled(seen: Seen) -> str | None:
    steps = seen["profile.steps"]
    return None if steps is None else f"with profile.steps={steps}, which sets it"


def _no_profiler(seen: Seen) -> str | None:
    off = not seen["profiler.enable_profiling"] and seen["profile.steps"] is None
    return "with profiler.enable_profiling=false" if off else None


def _no_snapshots(seen: Seen) -> str | None:
    if seen["profile.steps"] is not None and seen.where.device != "cpu":
        return None
    off = not seen["profiler.enable_memory_snapshot"]
    return "with profiler.enable_memory_snapshot=false" if off else None


def _no_profile_at_all(seen: Seen) -> str | None:
    """Return the reason if no profile is taken; ``profile_freq`` is also the snapshot interval."""
    if _no_profiler(seen) is None:
        return None
    own = seen["profiler.memory_snapshot_freq"] is not None
    return _no_profiler(seen) if own or _no_snapshots(seen) else None


def _on_cpu(words: str) -> Reason:
    return lambda seen: words if seen.where.device == "cpu" else None


def _too_short_to_judge(seen: Seen) -> str | None:
    steps, window = seen.run.training.steps, seen.run.faults.window
    if steps > window:
        return None
    return (
        f"with training.steps={steps}: no spike is detected in the first "
        f"faults.window={window} steps"
    )


def _longer_than_the_run(name: str) -> Reason:
    """Return a rule that applies if an interval in steps is longer than the run."""

    def reason(seen: Seen) -> str | None:
        steps, interval = seen.run.training.steps, getattr(seen.run.faults, name)
        never = steps < interval
        return f"with training.steps={steps}, which are fewer" if never else None

    return reason


_SAVING = (
    "checkpoint.interval",
    "checkpoint.keep_latest_k",
    "checkpoint.keep_every",
    "checkpoint.keep_best",
    "checkpoint.keep_best_of",
    "checkpoint.async_mode",
    "checkpoint.enable_first_step_checkpoint",
    "checkpoint.last_save_model_only",
    "checkpoint.last_save_in_hf",
    "checkpoint.export_dtype",
)
_LOADING = (
    "checkpoint.initial_load_model_only",
    "checkpoint.initial_load_in_hf",
    "checkpoint.initial_load_in_hf_quantized",
)
_STAGES = (
    "parallelism.pipeline_parallel_first_stage_less_layers",
    "parallelism.pipeline_parallel_last_stage_less_layers",
    "parallelism.pipeline_parallel_layers_per_stage",
)
_WRAPPED = (
    "activation_checkpoint.preserve_rng_state",
    "activation_checkpoint.determinism_check",
    "activation_checkpoint.debug",
)
_CYCLE = (
    "profiler.save_traces_folder",
    "profiler.profiler_repeat",
    "profiler.profiler_skip_first",
    "profiler.profiler_skip_first_wait",
    "profiler.profiler_active",
    "profiler.profiler_warmup",
)
_SNAPSHOTS = ("profiler.memory_snapshot_freq", "profiler.save_memory_snapshot_folder")

RULES: tuple[tuple[tuple[str, ...], Reason], ...] = (
    (("faults.spike_threshold",), _with("faults.spike", "none")),
    (("faults.spike",), _too_short_to_judge),
    *(
        ((f"faults.{name}",), _longer_than_the_run(name))
        for name in ("replay_check_interval", "replica_check_interval")
    ),
    (("faults.budget",), _faults("none", "stop")),
    (
        ("faults.window",),
        lambda seen: _faults("none", "stop")(seen) if seen["faults.spike"] == "none" else None,
    ),
    (("training.gc_freq",), _with("training.gc_debug", True)),
    (
        (
            "lr_scheduler.warmup_steps",
            "lr_scheduler.total_steps",
            "lr_scheduler.decay_ratio",
            "lr_scheduler.decay_type",
            "lr_scheduler.min_lr_factor",
        ),
        lambda seen: "with lr_scheduler.stages" if seen["lr_scheduler.stages"] else None,
    ),
    (
        ("lr_scheduler.decay_type", "lr_scheduler.min_lr_factor"),
        _with("lr_scheduler.decay_ratio", 0),
    ),
    (
        ("lr_scheduler.decay_type", "lr_scheduler.decay_ratio"),
        _with("lr_scheduler.min_lr_factor", 1),
    ),
    (
        (
            *_SAVING,
            *_LOADING,
            "checkpoint.folder",
            "checkpoint.load_step",
            "checkpoint.load_only",
            "checkpoint.exclude_from_loading",
            "checkpoint.initial_load",
            "checkpoint.initial_load_path",
        ),
        _with("checkpoint.enable", False),
    ),
    (_SAVING, _with("checkpoint.load_only", True)),
    (("checkpoint.keep_every", "checkpoint.keep_best"), _with("checkpoint.keep_latest_k", 0)),
    (("checkpoint.keep_best_of",), _with("checkpoint.keep_best", 0)),
    (
        ("validation.interval", "validation.tokens"),
        lambda seen: (
            None
            if seen["validation.sets"] or seen["validation.fraction"]
            else "without validation.sets"
        ),
    ),
    (
        ("evaluation.tasks", "evaluation.limit", "evaluation.device", "evaluation.layout"),
        _with("evaluation.interval", 0),
    ),
    (("checkpoint.export_dtype",), _with("checkpoint.last_save_model_only", False)),
    (_LOADING, _no_initial_weights),
    (
        ("checkpoint.initial_load_in_hf",),
        lambda seen: (
            "with checkpoint.initial_load, where hf:FOLDER sets it"
            if seen["checkpoint.initial_load"]
            else None
        ),
    ),
    (("compile.components", "compile.backend"), _with("compile.enable", False)),
    (("lora.alpha", "lora.rslora", "lora.targets", "lora.adapter"), _with("lora.rank", 0)),
    (("comm.save_traces_folder", "comm.save_traces_file_prefix"), _no_traces),
    (("metrics.wandb_mode",), _with("metrics.enable_wandb", False)),
    (("metrics.save_tb_folder", "metrics.save_for_all_ranks"), _no_tracker),
    ((*_CYCLE, *_SNAPSHOTS, "profiler.profile_freq"), _profiled),
    (_CYCLE, _no_profiler),
    (("profiler.profile_freq",), _no_profile_at_all),
    ((*_SNAPSHOTS, "profiler.memory_snapshot_max_entries"), _no_snapshots),
    (("profiler.enable_memory_snapshot",), _on_cpu("on a CPU: snapshots are of GPU memory")),
    (("debug.deterministic_warn_only",), _with("debug.deterministic", False)),
    (
        ("debug.spmd_typechecking",),
        _with("parallelism.spmd_backend", "partial_dtensor", "full_dtensor"),
    ),
    # Only torchtitan's own command starts that log.
    (("debug.enable_structured_logging",), lambda _: "because ATOM has its own log"),
    (
        (
            *_STAGES,
            "parallelism.pipeline_parallel_schedule",
            "parallelism.pipeline_parallel_schedule_csv",
            "parallelism.pipeline_parallel_microbatch_size",
            "parallelism.module_fqns_per_model_part",
        ),
        _without("pipeline_parallel"),
    ),
    (
        _STAGES,
        lambda seen: (
            "with parallelism.module_fqns_per_model_part"
            if seen["parallelism.module_fqns_per_model_part"]
            else None
        ),
    ),
    (("parallelism.enable_sequence_parallel",), _without("tensor_parallel")),
    (
        (
            "parallelism.context_parallel_load_balancer",
            "parallelism.context_parallel_ptrr_mask_key",
        ),
        _without("context_parallel"),
    ),
    (
        ("parallelism.context_parallel_ptrr_mask_key",),
        _with("parallelism.context_parallel_load_balancer", "headtail", None),
    ),
    (
        ("parallelism.enable_fsdp_symm_mem",),
        _without("data_parallel_shard", "tensor_parallel", "context_parallel"),
    ),
    (
        (
            *_WRAPPED,
            "activation_checkpoint.force_recompute_mm_shapes_by_fqns",
            "activation_checkpoint.memory_budget",
            "activation_checkpoint.visualize_memory_budget_pareto",
        ),
        _with("activation_checkpoint.mode", "none"),
    ),
    (_WRAPPED, _with("activation_checkpoint.mode", "memory_budget")),
)
