"""Compare a resumed run with the run that wrote its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from atom import plugin
from atom.errors import shown
from atom.recipe import ranges

Kind = Literal["harmless", "matters", "refused", "unused"]
"""``harmless``: no effect on the losses beyond the order of floating-point sums. ``matters``:
training continues differently, with the current setting. ``refused``: it would be a different run.
``unused``: the setting applies only to the first start of a run."""

KINDS: dict[str, Kind] = {
    # For component sections, the kind decides.
    **{kind.section: kind.change for kind in plugin.KINDS},
    # A checkpoint's weights and its position in the data depend on these.
    "training.seq_len": "refused",
    "training.global_batch_size": "refused",
    "debug.seed": "refused",
    "resolved.vocab_size": "refused",
    # The optimizer and its schedule come from the run; a checkpoint supplies moments and step
    # counts.
    "optimizer": "matters",
    "lr_scheduler.warmup_steps": "matters",
    "lr_scheduler.total_steps": "matters",
    "lr_scheduler.decay_ratio": "matters",
    "lr_scheduler.decay_type": "matters",
    "lr_scheduler.min_lr_factor": "matters",
    "lr_scheduler.stages": "matters",
    "training.batch_schedule": "matters",  # each sequence keeps its place in the data
    "training.stop_after": "harmless",
    "training.steps": "matters",  # also the end of the schedule
    "training.max_norm": "matters",
    "lora": "refused",
    "lora.adapter": "unused",
    "training.dtype": "matters",
    "training.mixed_precision_param": "matters",
    "training.mixed_precision_reduce": "matters",
    "debug.moe_force_load_balance": "matters",
    "faults": "matters",  # a skipped step changes no weights
    "faults.replica_check_interval": "harmless",
    "faults.replay_check_interval": "harmless",
    "checkpoint.exclude_from_loading": "matters",
    "device": "matters",  # the default compute dtypes depend on it
    # Computes the same sums in another order or on another rank.
    "training.local_batch_size": "harmless",
    "training.enable_cpu_offload": "harmless",
    "training.disable_cuda_graphs": "harmless",
    "training.gc_freq": "harmless",
    "training.gc_debug": "harmless",
    "loss": "harmless",
    "loss.z_loss": "matters",
    "activation_checkpoint": "harmless",
    "compile": "harmless",
    "debug.deterministic": "harmless",
    "debug.deterministic_warn_only": "harmless",
    "debug.batch_invariant": "harmless",
    # Does not affect the losses.
    "debug.spmd_typechecking": "harmless",
    "debug.detect_anomaly": "harmless",
    "debug.print_config": "harmless",
    "debug.save_config_file": "harmless",
    "debug.enable_structured_logging": "harmless",
    "checkpoint.enable": "harmless",  # false is refused: nothing would be loaded
    "checkpoint.folder": "harmless",
    "checkpoint.interval": "harmless",
    "checkpoint.last_save_model_only": "harmless",
    "checkpoint.last_save_in_hf": "harmless",
    "checkpoint.export_dtype": "harmless",
    "checkpoint.keep_latest_k": "harmless",
    "checkpoint.keep_every": "harmless",
    "checkpoint.keep_best": "harmless",
    "checkpoint.keep_best_of": "harmless",
    "checkpoint.load_step": "harmless",  # refused: restarted ranks would load that step again
    "checkpoint.enable_first_step_checkpoint": "harmless",
    "checkpoint.create_seed_checkpoint": "harmless",
    "checkpoint.load_only": "harmless",
    "checkpoint.async_mode": "harmless",
    "comm": "harmless",
    "metrics": "harmless",
    "profiler": "harmless",
    "profile": "harmless",
    "provenance": "harmless",
    "validation": "harmless",
    "validation.fraction": "refused",  # which documents are trained on
    "evaluation": "harmless",
    "data": "harmless",
    "data.order": "refused",
    "data.packing": "refused",
    "launch": "harmless",
    "sweep": "harmless",
    "plugins": "harmless",
    "run": "harmless",
    "resume": "harmless",
    "resume.from": "unused",
    "dry_run": "harmless",
    "world_size": "harmless",
    "batch": "harmless",  # derived from training.global_batch_size
    "resolved": "harmless",  # derived
    # The initial weights of a run.
    "checkpoint.initial_load": "unused",
    "checkpoint.initial_load_path": "unused",
    "checkpoint.initial_load_model_only": "unused",
    "checkpoint.initial_load_in_hf": "unused",
    "checkpoint.initial_load_in_hf_quantized": "unused",
}
"""Key or key prefix -> effect of a change; the longest match applies."""

_FOUND_OUT = {"device": "device", "training.global_batch_size": "global_batch_size"}
"""Settings that can be left open (``auto``, null) -> the key in ``resolved`` with the value that
was chosen, which is the one compared."""

_PLACES = ("path", "paths", "file", "files", "folder")


@dataclass(frozen=True)
class Change:
    """One setting that differs. ``key`` is dotted."""

    key: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.before)} → {shown(self.after)}"


Judge = Callable[[str], Kind | None]
"""Returns the effect of changing a setting, or None for the one in :data:`KINDS`."""


def changes(
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    same: frozenset[str] = frozenset(),
    judge: Judge = lambda _: None,
) -> list[Change]:
    """Return how two runs differ.

    Args:
        before: the sections of a ``run.yaml``.
        after: the sections of the other ``run.yaml``.
        same: sections known to have the same content, wherever it is stored.
        judge: the judgement of the components.
    """
    before, after = _decided(before), _decided(after)
    found = []
    for key, a, b in _differences("", before, after):
        what = judge(key) or kind(key)
        if key == "training.steps" and _schedule_end(before) == _schedule_end(after):
            what = "harmless"
        elif what == "unused" and (b is None or str(a).startswith(str(b))):
            what = "harmless"  # no longer set; or it named the run of the newest checkpoint
        elif is_place(key) and key.partition(".")[0] in same:
            what = "harmless"
        found.append(Change(key, a, b, what))
    return found


def kind(key: str) -> Kind:
    """Return the effect of changing a setting; ``matters`` for an unknown one."""
    while key not in KINDS and "." in key:
        key = key.rpartition(".")[0]
    return KINDS.get(key, "matters")


def is_place(key: str) -> bool:
    """Return whether a setting is only a location."""
    return key.rpartition(".")[2] in _PLACES


def _decided(sections: dict[str, Any]) -> dict[str, Any]:
    """Return the sections with open settings replaced by the chosen values."""
    resolved = dict(sections.get("resolved") or {})
    filled = sections | {"training": dict(sections["training"]), "resolved": resolved}
    for key, name in _FOUND_OUT.items():
        if (value := resolved.pop(name, None)) is not None:
            section, _, last = key.rpartition(".")
            (filled[section] if section else filled)[last] = value
    return filled


def _schedule_end(sections: dict[str, Any]) -> Any:
    """Return the last step of the schedule; None if its stages do not depend on the run's end."""
    if stages := sections["lr_scheduler"].get("stages"):
        last = stages[-1]
        given = last.get("steps") is not None or last.get("tokens") is not None
        return None if given else sections["training"].get("steps")
    return sections["lr_scheduler"].get("total_steps") or sections["training"].get("steps")


def _differences(key: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from _differences(f"{key}.{name}" if key else name, a.get(name), b.get(name))
    elif not _alike(a, b):
        yield key, a, b


def _alike(a: Any, b: Any) -> bool:
    """Return whether two values are equal for a key that also accepts numbers as text."""
    if isinstance(a, str) != isinstance(b, str):
        number = ranges.number(a)
        return number is not None and number == ranges.number(b)
    return bool(a == b)
