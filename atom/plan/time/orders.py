"""Write the order of actions of Megatron's pipeline schedules, without torch.

ATOM's own runs take theirs from torch (:mod:`atom.titan.planning.schedule`).
"""

from __future__ import annotations

from functools import lru_cache

from atom.plan.pipeline import BACKWARD, FORWARD, Action, Schedule


@lru_cache(maxsize=256)
def interleaved(ranks: int, chunks: int, microbatches: int) -> Schedule:
    """Return interleaved 1F1B (Narayanan et al., 2021, section 2.2.2); 1F1B for one chunk."""
    if chunks == 1:
        return Schedule([_one_chunk(rank, ranks, microbatches) for rank in range(ranks)])
    total = microbatches * chunks
    order = []
    for rank in range(ranks):
        forward = [_at(i, rank, ranks, chunks, microbatches, FORWARD) for i in range(total)]
        backward = [_at(i, rank, ranks, chunks, microbatches, BACKWARD) for i in range(total)]
        warmup = min((ranks - rank - 1) * 2 + (chunks - 1) * ranks, total)
        order.append(_merged(forward, backward, warmup))
    return Schedule(order)


def _one_chunk(rank: int, ranks: int, microbatches: int) -> tuple[Action, ...]:
    forward = [Action(rank, FORWARD, i) for i in range(microbatches)]
    backward = [Action(rank, BACKWARD, i) for i in range(microbatches)]
    return _merged(forward, backward, min(ranks - rank - 1, microbatches))


def _merged(forward: list[Action], backward: list[Action], warmup: int) -> tuple[Action, ...]:
    steady = [a for pair in zip(forward[warmup:], backward, strict=False) for a in pair]
    return (*forward[:warmup], *steady, *backward[len(forward) - warmup :])


def _at(i: int, rank: int, ranks: int, chunks: int, microbatches: int, kind: str) -> Action:
    """Return the ``i``-th action: chunks take turns in groups of up to ``ranks`` micro-batches."""
    group, inside = divmod(i, ranks * chunks)
    size = min(ranks, microbatches - group * ranks)
    chunk, microbatch = divmod(inside, size)
    if kind == BACKWARD:
        chunk = chunks - 1 - chunk
    return Action(chunk * ranks + rank, kind, group * ranks + microbatch)
