"""Explain why a layout was chosen: the ten best, and why the obvious others lose."""

from __future__ import annotations

from collections.abc import Callable

from atom.plan.candidates import Candidate
from atom.plan.device import GIB
from atom.plan.estimate import Estimate
from atom.plan.model import FULL, NONE
from atom.plan.search import HEADROOM, Found, Search, Tried

FEW = 20
"""Exact estimates to find the best of an obvious kind of layouts."""

Among = Callable[[Candidate], bool]

_PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "memory-bound operations",
    "launches": "launches",
    "optimizer": "optimizer",
    "idle": "idle in the pipeline",
}


def name(candidate: Candidate) -> str:
    """Return the degrees above 1."""
    shape = candidate.shape
    degrees = {
        "replicate": candidate.replicate,
        "shard": candidate.shard,
        "tp": shape.tp,
        "cp": shape.cp,
        "pp": shape.pp,
        "ep": shape.ep,
    }
    return " x ".join(f"{short} {n}" for short, n in degrees.items() if n > 1) or "one rank"


def explain(search: Search, found: Found) -> str:
    """Return a table of the best layouts, and a line for each obvious layout that loses."""
    best = found.fitting[0]
    rows: list[tuple[str, ...]] = [
        ("layout", "checkpointing", "local batch", "micro-batch", "GiB a rank", "s a step", "")
    ]
    for tried in found.fitting:
        why = "chosen" if tried is best else _slower(_of(best), _of(tried))
        rows.append((*_row(tried), why))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[-1]}"
        for row in rows
    ]
    limit = _of(best).limit / GIB
    head = (
        f"parallelism=auto: {search.space.ranks:,} x {search.device.name}, {limit:.3g} GiB each, "
        f"planned with {HEADROOM:.0%} of it; {found.bounded:,} layouts bounded, "
        f"{found.estimated:,} estimated"
    )
    others = [
        f"{kind}: {why}" for kind, among in _obvious(search) if (why := _lost(search, best, among))
    ]
    return "\n".join([head, *(f"  {line}".rstrip() for line in (*lines, *others))])


def _row(tried: Tried) -> tuple[str, ...]:
    candidate, found = tried.candidate, _of(tried)
    schedule = ""
    if candidate.shape.pp > 1:
        schedule = f", {candidate.schedule}"
        schedule += f" of {candidate.chunks} stages a rank" if candidate.chunks > 1 else ""
    kept = ", kept gathered" if not candidate.reshard and candidate.shape.pp == 1 else ""
    return (
        name(candidate) + schedule + kept,
        candidate.mode,
        str(candidate.local_batch_size),
        str(candidate.shape.sequences),
        f"{found.memory.total / GIB:.3g}",
        f"{found.step.seconds:.3g}",
    )


def _obvious(search: Search) -> list[tuple[str, Among]]:
    """Return the kinds of layouts that come to mind first."""
    node = search.space.node

    def inner(candidate: Candidate) -> tuple[int, int, int]:
        return candidate.shape.tp, candidate.shape.cp, candidate.shape.pp

    return [
        ("FSDP alone", lambda c: inner(c) == (1, 1, 1) and c.replicate == 1),
        (
            "FSDP in a node, copies between nodes",
            lambda c: inner(c) == (1, 1, 1) and c.shard == node and c.replicate > 1,
        ),
        (f"tp {node} and FSDP", lambda c: node > 1 and inner(c) == (node, 1, 1)),
        ("a pipeline without tp", lambda c: c.shape.pp > 1 and c.shape.tp == 1),
        (f"tp {node} and a pipeline", lambda c: node > 1 and c.shape.pp > 1 and c.shape.tp == node),
        ("no activation checkpointing", lambda c: c.mode == NONE),
        ("full activation checkpointing", lambda c: c.mode == FULL),
    ]


def _lost(search: Search, best: Tried, among: Among) -> str:
    """Return why the best layout of a kind loses; "" if it is chosen, or there is none."""
    if among(best.candidate):
        return ""
    found = search.best(among=among, most=FEW)
    if found.fitting:
        first = found.fitting[0]
        return f"{_of(first).step.seconds:.3g} s ({name(first.candidate)}): " + _slower(
            _of(best), _of(first)
        )
    if found.closest is not None:
        needed, closest = found.closest
        return f"too large: {needed / GIB:.3g} GiB at least ({name(closest)})"
    return f"impossible: {found.problem}" if found.problem else ""


def _slower(best: Estimate, other: Estimate) -> str:
    """Return the part in which ``other`` loses the most."""

    def parts(found: Estimate) -> dict[str, float]:
        step = found.step
        own = {label: float(getattr(step, part)) for part, label in _PARTS.items()}
        return own | {f"{n} communication": s for n, s in step.exposed.items()}

    mine, theirs = parts(best), parts(other)
    more = {n: theirs.get(n, 0.0) - mine.get(n, 0.0) for n in sorted({*mine, *theirs})}
    label, seconds = max(more.items(), key=lambda item: item[1])
    return f"{label} +{seconds:.3g} s" if seconds >= 0.0005 else "as fast"


def _of(tried: Tried) -> Estimate:
    assert tried.estimate is not None
    return tried.estimate
