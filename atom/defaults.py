"""torchtitan's defaults of the settings that are looked at before torch is imported.

torchtitan says what they are, and a test holds these against it.
"""

from __future__ import annotations

from typing import Any

from atom.run import Run

DEFAULTS: dict[str, Any] = {
    "training.steps": 10000,
    "training.seq_len": 2048,
    "lr_scheduler.warmup_steps": 200,
    "lr_scheduler.total_steps": None,
    "lr_scheduler.decay_ratio": None,
    "lr_scheduler.min_lr_factor": 0.0,
}


def value(run: Run, key: str) -> Any:
    """Return the value of ``key``, a section and a name: the run's, or torchtitan's default."""
    section, _, name = key.partition(".")
    found = getattr(run, section)
    values = found if isinstance(found, dict) else {**found.__dict__, **(found.model_extra or {})}
    return values.get(name, DEFAULTS.get(key))
