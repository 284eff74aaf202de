"""Check that intervals and pieces fit into a run's steps and sequences."""

from __future__ import annotations

from atom.errors import UserError
from atom.recipe.defaults import value
from atom.recipe.run import Run


def check(run: Run, context: int | None) -> None:
    """Refuse events scheduled after the last step, and pieces that do not divide a sequence.

    Args:
        run: a run with validated ranges.
        context: the degree of context parallelism; None if unknown.

    Raises:
        UserError: names the key at fault.
    """
    steps, chunks = int(value(run, "training.steps")), run.loss.num_chunks
    length = int(value(run, "training.seq_len")) // (context or 1)
    if context is not None and length % chunks:
        split = f", of which a rank has {length} (context_parallel_degree {context})"
        raise UserError(
            f"must divide training.seq_len={value(run, 'training.seq_len')}"
            f"{split if context > 1 else ''}",
            key="loss.num_chunks",
            value=chunks,
        )
    if run.profile.window is None:
        _profiler(run, steps)


def _profiler(run: Run, steps: int) -> None:
    """Refuse profiler settings that would write no profile."""
    names = ("profile_freq", "profiler_warmup", "profiler_active", "profiler_skip_first")
    every, warmup, active, skipped = (int(value(run, f"profiler.{n}") or 0) for n in names)
    first = skipped + (
        warmup + active if value(run, "profiler.profiler_skip_first_wait") else every
    )
    key, problem = "profiler.profile_freq", None
    if value(run, "profiler.enable_profiling"):
        if every < warmup + active:
            problem = f"valid: at least {warmup + active}, profiler_warmup + profiler_active"
        elif first > steps:
            problem = f"the first trace would be whole at step {first}, and training.steps={steps}"
    if problem is None and value(run, "profiler.enable_memory_snapshot"):
        if value(run, "profiler.memory_snapshot_freq") is not None:
            key = "profiler.memory_snapshot_freq"
        if (first := int(value(run, key))) > steps:
            problem = f"the first snapshot would be of step {first}, and training.steps={steps}"
    if problem is not None:
        raise UserError(problem, key=key, value=value(run, key))
