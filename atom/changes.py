"""What a run that goes on does differently from the run that wrote its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from atom.errors import shown

Kind = Literal["harmless", "matters", "refused"]

REFUSED = (
    "architecture",
    "tokenizer",
    "dataset",
    "training.seq_len",
    "debug.seed",
    "resolved.vocab_size",
    "resolved.global_batch_size",
)
"""What a checkpoint's weights and its place in the data belong to. A change of these is another
run."""

MATTERS = ("optimizer", "loss", "lr_scheduler", "training", "debug")
"""What changes the losses from here on. All the rest, such as the layout, does not, beyond the
order of floating-point sums."""


@dataclass(frozen=True)
class Change:
    """One setting that differs. ``key`` is written with dots."""

    key: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.before)} → {shown(self.after)}"


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Return how two runs differ, each as the sections of its ``run.yaml``."""
    return [Change(key, a, b, _kind(key)) for key, a, b in _differences("", before, after)]


def _differences(key: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from _differences(f"{key}.{name}" if key else name, a.get(name), b.get(name))
    elif a != b:
        yield key, a, b


def _kind(key: str) -> Kind:
    def within(keys: tuple[str, ...]) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in keys)

    if within(REFUSED):
        return "refused"
    return "matters" if within(MATTERS) else "harmless"
