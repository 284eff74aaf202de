"""Choose the layout that fits and has the shortest step by the core's estimates.

1. Layouts are tried in order of the ranks that share one copy of the model apart from FSDP
   (tensor x context x pipeline degree), the fewest first; once a layout fits, only those with up to
   twice as many are tried.
2. Tensor parallelism stays within a node. Experts, if there are any, stay on their ranks, or are
   sharded over a node, or as far as possible.
3. For each layout, the first activation checkpointing that fits is taken: none, selective, full.
   The less is recomputed, the faster.
4. Without ``training.local_batch_size``, each divisor of the batch is tried, the largest first,
   until one needs no recomputation; the rest is gradient accumulation.
5. Among layouts that fit, the shortest estimated step wins.

Degrees and modes that the run sets are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from atom.errors import UserError
from atom.plugin import LayoutChoice, LayoutContext

MODES = ("none", "selective", "full")
REPLICATE = "data_parallel_replicate_degree"
SHARD = "data_parallel_shard_degree"
TENSOR = "tensor_parallel_degree"
CONTEXT = "context_parallel_degree"
PIPELINE = "pipeline_parallel_degree"
EXPERT = "expert_parallel_degree"

HEADROOM = 0.9
"""Fraction of the device's memory that an estimate may reach.

Estimates are within 10 % of measurements (``benchmarks/results/memory.md``).
"""

ROWS = 12
"""Maximum rows of the explanation."""


@dataclass(frozen=True)
class Candidate:
    """A layout that was tried: its estimate, or why it is impossible."""

    degrees: Mapping[str, int]
    local_batch_size: int
    mode: str
    estimate: Any = None
    problem: str = ""

    @property
    def fits(self) -> bool:
        if self.estimate is None:
            return False
        return bool(self.estimate.memory.total <= HEADROOM * self.estimate.limit)


def auto(context: LayoutContext) -> LayoutChoice:
    """Return the layout with the shortest estimated step among those that fit.

    Raises:
        UserError: none fits.
    """
    seen: list[Candidate] = []
    smallest: int | None = None
    for shared in _divisors(context.ranks):
        if smallest is not None and shared > 2 * smallest:
            break
        for degrees in _degrees(context, shared):
            found = list(_tried(context, degrees))
            seen += found
            if smallest is None and any(candidate.fits for candidate in found):
                smallest = shared
    fitting = [candidate for candidate in seen if candidate.fits]
    if not fitting:
        raise UserError(_nothing(context, seen), key="parallelism", value="auto")
    best = min(fitting, key=_preference)
    return _choice(context, best, explanation=_table(context, seen, best))


def _preference(candidate: Candidate) -> tuple[float, int, int]:
    """Return a sort key: time to three digits, then replicas, then local batch."""
    seconds = float(f"{candidate.estimate.step.seconds:.3g}")
    return seconds, candidate.degrees[REPLICATE], -candidate.local_batch_size


def _degrees(context: LayoutContext, shared: int) -> Iterator[dict[str, int]]:
    """Yield the degrees in which ``shared`` ranks share one copy, FSDP aside."""
    node = context.device.devices_per_node
    data = context.ranks // shared
    experts = gcd(*(p.shape[0] for p in context.model.parameters if p.expert))
    for tensor in _divisors(shared):
        if tensor > max(node, 1):
            continue
        for pipeline in _divisors(shared // tensor):
            if pipeline > len(context.model.blocks):
                continue
            inner = shared // pipeline
            # A replica per node, or per eight nodes, if possible.
            sizes = {data, *(nodes * node // inner for nodes in (1, 8))}
            for shard in sorted((s for s in sizes if s and data % s == 0), reverse=True):
                degrees = {
                    REPLICATE: data // shard,
                    SHARD: shard,
                    TENSOR: tensor,
                    CONTEXT: shared // tensor // pipeline,
                    PIPELINE: pipeline,
                }
                shares = {gcd(experts, n, shard * inner) for n in (node, 0)} if experts else set()
                for expert in sorted({1, *shares}):
                    chosen = degrees | ({EXPERT: expert} if experts else {})
                    wished = context.parallelism
                    if all(wished.get(name, -1) in (-1, n) for name, n in chosen.items()):
                        yield chosen


def _tried(context: LayoutContext, degrees: dict[str, int]) -> Iterator[Candidate]:
    """Yield a candidate per local batch: the first mode that fits, or the one closest to it."""
    data = degrees[REPLICATE] * degrees[SHARD]
    batch = context.global_batch_size
    if batch % data:
        problem = f"the batch of {batch} cannot be divided among {data} data-parallel ranks"
        yield Candidate(degrees, 0, MODES[-1], problem=problem)
        return
    wished = context.activation_checkpoint.get("mode")
    modes = [wished] if wished not in (None, "auto") else list(MODES)
    given = context.training.get("local_batch_size")
    each = batch // data
    # Under PP the local batch is already split into micro-batches.
    whole = degrees[PIPELINE] > 1
    local = [given] if given else [each] if whole else _divisors(each)[::-1]
    for size in local:
        for mode in modes:
            try:
                estimate = context.estimate(_choice(context, Candidate(degrees, size, mode)))
            except UserError as error:
                yield Candidate(degrees, size, mode, problem=error.sentence())
                return
            candidate = Candidate(degrees, size, mode, estimate)
            if candidate.fits:
                yield candidate
                if mode == modes[0]:
                    return
                break
            memory = estimate.memory
            # If the parameters alone are too large, a smaller batch does not help.
            hopeless = (
                memory.total - memory.activations - memory.working > HEADROOM * estimate.limit
            )
            if hopeless or (size == local[-1] and mode == modes[-1]):
                yield candidate
                return


def _choice(context: LayoutContext, candidate: Candidate, explanation: str = "") -> LayoutChoice:
    each = context.global_batch_size // (candidate.degrees[REPLICATE] * candidate.degrees[SHARD])
    accumulates = candidate.local_batch_size not in (0, each)
    given = "local_batch_size" in context.training
    return LayoutChoice(
        parallelism=candidate.degrees,
        activation_checkpoint={"mode": candidate.mode},
        training={"local_batch_size": candidate.local_batch_size}
        if accumulates and not given
        else {},
        explanation=explanation,
    )


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _nothing(context: LayoutContext, seen: list[Candidate]) -> str:
    measured = [candidate for candidate in seen if candidate.estimate is not None]
    if measured:
        closest = min(measured, key=lambda c: c.estimate.memory.total)
        needs = closest.estimate.memory.total / 2**30
        return (
            f"no layout of {context.ranks} ranks fits in {HEADROOM:.0%} of "
            f"{closest.estimate.limit / 2**30:.1f} GiB each; the closest ({_name(closest)}) needs "
            f"{needs:.1f} GiB; valid: more ranks, a shorter training.seq_len, or a smaller model"
        )
    reason = seen[0].problem if seen else "none has the given degrees"
    return f"no layout of {context.ranks} ranks is possible: {reason}"


def _name(candidate: Candidate) -> str:
    short = {
        REPLICATE: "replicate",
        SHARD: "shard",
        TENSOR: "tp",
        CONTEXT: "cp",
        PIPELINE: "pp",
        EXPERT: "ep",
    }
    degrees = [f"{short[name]} {n}" for name, n in candidate.degrees.items() if n > 1]
    return " x ".join(degrees) or "one rank"


def _table(context: LayoutContext, seen: list[Candidate], best: Candidate) -> str:
    """Return the explanation: layouts that fit, by time; then the others, by memory."""
    fitting = sorted(
        (candidate for candidate in seen if candidate.fits and candidate is not best),
        key=lambda c: c.estimate.step.seconds,
    )
    others = sorted(
        (candidate for candidate in seen if not candidate.fits),
        key=lambda c: c.estimate.memory.total if c.estimate is not None else float("inf"),
    )
    half = (ROWS - 1) // 2
    shown = fitting[: max(half, ROWS - 1 - len(others))]
    shown += others[: ROWS - 1 - len(shown)]
    rows = [("layout", "checkpointing", "local batch", "GiB a rank", "s a step", "")]
    for candidate in [best, *shown]:
        estimate = candidate.estimate
        verdict = "chosen" if candidate is best else "slower" if candidate.fits else "too large"
        rows.append(
            (
                _name(candidate),
                candidate.mode if estimate is not None else "-",
                str(candidate.local_batch_size or "-"),
                f"{estimate.memory.total / 2**30:.3g}" if estimate is not None else "-",
                f"{estimate.step.seconds:.3g}" if estimate is not None else "-",
                verdict if estimate is not None else candidate.problem,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[5]}"
        for row in rows
    ]
    limit = best.estimate.limit / 2**30
    head = (
        f"parallelism=auto: {context.ranks:,} x {context.device.name}, {limit:.3g} GiB each, "
        f"planned with {HEADROOM:.0%} of it; {len(seen)} layouts estimated"
    )
    return "\n".join([head, *(f"  {line}".rstrip() for line in lines)])
