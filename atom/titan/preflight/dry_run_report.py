"""Format a dry run as text."""

from __future__ import annotations

from collections.abc import Sequence

from atom.io.numbers import sparkline
from atom.plan.device import GIB
from atom.plan.time.step import Step
from atom.recipe import batches, schedules
from atom.recipe.run import DEGREES
from atom.titan.preflight.dry_run import LABELS, DryRun, Rank
from atom.titan.preflight.preflight import Preflight

_COLUMNS = 40
_TURNS = 6


def report(found: DryRun, data: Sequence[tuple[str, str]] = (), *, ascii_only: bool = False) -> str:
    """Return ``found`` as text, with a line break at the end.

    Args:
        found: the dry run.
        data: rows about the data: label and text.
        ascii_only: whether the learning rate is drawn in ASCII.
    """
    ready, estimate = found.ready, found.estimate
    resolved, layout, step = ready.resolved, estimate.layout, estimate.step
    degrees = [
        f"{name.removesuffix('_degree')} {resolved.degrees[name]}"
        for name in DEGREES
        if resolved.degrees[name] > 1
    ]
    if layout.ep > 1:
        degrees.append(f"expert_parallel {layout.ep} (of the ranks above)")
    lines = [ready.explanation, ""] if ready.explanation else []
    lines += [
        f"dry run  {resolved.world_size:,} x {found.device.name or found.device.kind}, "
        f"{found.device.memory / GIB:.1f} GiB each; nothing is started or written",
        f"model    {ready.run.architecture.name}, {found.model.numel:,} parameters",
        f"layout   {' x '.join(degrees) or 'one rank'}",
        f"batch    {resolved.global_batch_size:,} sequences x {ready.seq_len:,} tokens; "
        f"{layout.local_batch_size} a rank at once, gradient accumulation {layout.accumulation}",
        *_sizes(ready, ascii_only=ascii_only),
        f"rate     {_rate(ready, ascii_only=ascii_only)}",
        *(f"{label:8} {text}" for label, text in data),
        f"memory   activation checkpointing {layout.checkpointing}; parameters in "
        f"{layout.parameter_dtype}, gathered in {layout.compute_dtype}",
    ]
    if layout.pp > 1:
        lines.append(
            f"pipeline {layout.schedule}, {layout.microbatches} microbatches, "
            f"{len(layout.stages)} stages, {layout.bubble:.1%} of the time idle"
        )
    chosen: dict[str, list[str]] = {}
    for operation, (kernel, _) in ready.kernels.items():
        part = ready.resolved.kernels_partial.get(operation)
        chosen.setdefault(kernel, []).append(f"{operation} ({part})" if part else operation)
    for label, (kernel, operations) in zip(
        ["kernels", *[""] * len(chosen)], chosen.items(), strict=False
    ):
        lines.append(f"{label:8} {kernel}: {', '.join(operations)}")
    for label, chosen_one in zip(
        ["parts", *[""] * len(found.components)], found.components, strict=False
    ):
        plugin = chosen_one.component.plugin
        lines.append(
            f"{label:8} {chosen_one.key} {chosen_one.component.name} "
            f"({plugin.package} {plugin.version})"
        )
    sent = "; ".join(f"{name} {_size(size)}" for name, size in estimate.sent.items())
    lines.append(f"sends    a rank and step: {sent or 'nothing'}")
    lines.append(
        f"step     about {step.seconds:.3g} s: {step.compute:.3g} computing, {step.waiting:.3g} "
        f"waiting for communication, {step.idle:.3g} idle in the pipeline, "
        f"{step.stragglers:.3g} waiting for the slowest rank"
    )
    lines.append(f"         of it {_parts_of(step)}")
    return "\n".join([*lines, "", *_table(found.ranks), ""])


def _parts_of(step: Step) -> str:
    """Return the largest parts of a step's time, the largest first."""
    parts = {
        "matrix products": step.products,
        "attention": step.attention,
        "memory-bound operations": step.memory,
        "launches": step.launches,
        "the optimizer": step.optimizer,
        **{f"{name} communication": seconds for name, seconds in step.exposed.items()},
    }
    shown = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {s:.3g}" for name, s in shown if s >= 0.001 * step.seconds)


def _rate(ready: Preflight, *, ascii_only: bool) -> str:
    """Return a picture of the learning rate, and its values where it turns."""
    run, resolved = ready.run, ready.resolved
    phases = schedules.phases(run, batches.batches(run, resolved.global_batch_size))
    steps, peak = ready.steps, run.optimizer.parameters.get("lr")

    def at(step: int) -> float:
        return schedules.rate(phases, step) * (peak if peak is not None else 1)

    shown = [at(step) for step in _columns(steps)]
    turns = {1, *(p.before + p.steps for p in phases if p.before + p.steps < steps), steps}
    picture = sparkline(shown, len(shown), ascii_only=ascii_only)
    values = ", ".join(f"{at(step):.2g} at step {step:,}" for step in sorted(turns)[:_TURNS])
    return f"{picture}  {values}{' of the peak' if peak is None else ''}"


def _columns(steps: int) -> list[int]:
    """Return the steps that a picture shows."""
    count = min(steps, _COLUMNS)
    return [1 + column * (steps - 1) // max(count - 1, 1) for column in range(count)]


def _sizes(ready: Preflight, *, ascii_only: bool) -> list[str]:
    """Return a picture of the schedule of batches, if there is one, above that of the rate."""
    of = batches.batches(ready.run, ready.resolved.global_batch_size)
    if not ready.run.training.batch_schedule:
        return []
    shown = [float(of.size(step)) for step in _columns(ready.steps)]
    picture = sparkline(shown, len(shown), ascii_only=ascii_only)
    turns = of.turns(ready.steps)
    shown_turns = turns if len(turns) <= _TURNS else [*turns[: _TURNS - 1], turns[-1]]
    values = ", ".join(f"{of.size(step):,} from step {step:,}" for step in shown_turns)
    return [
        f"schedule {picture}  {values}; {of.tokens(ready.steps):,} tokens in {ready.steps:,} steps"
    ]


def _table(ranks: list[Rank]) -> list[str]:
    """Return a table with a column for each built rank, in GiB; shards are counted."""
    columns = [["GiB", *(f"rank {rank.rank:,}" for rank in ranks)]]
    columns.append(["holds", *(_parts(rank.parts) for rank in ranks)])
    columns.append(["elements", *(f"{rank.numel:,}" for rank in ranks)])
    for name, label in LABELS.items():
        sizes = [getattr(rank.memory, name) for rank in ranks]
        if name != "averages" or any(sizes):
            columns.append([label, *(f"{size / GIB:.2f}" for size in sizes)])
    columns.append(["total", *(f"{rank.memory.total / GIB:.2f}" for rank in ranks)])
    widths = [max(len(row[column]) for row in columns) for column in range(len(ranks) + 1)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in columns
    ]


def _parts(parts: tuple[str, ...]) -> str:
    """Return ``layers 3-10 +norm +lm_head`` for the parts of a rank."""
    numbers = sorted(int(part.split(".")[1]) for part in parts if part.startswith("layers."))
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    layers = ",".join(f"{a}-{b}" if a < b else str(a) for a, b in ranges)
    others = [f"+{part}" for part in parts if not part.startswith("layers.")]
    return " ".join([f"layers {layers}", *others] if layers else others)


def _size(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 100 else f"{size / 2**20:.3g} MiB"
