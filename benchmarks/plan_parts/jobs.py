"""Turn published rows into layouts that :mod:`atom.plan` can predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plan_parts import frameworks
from plan_parts.frameworks import UnfitError

from atom.plan.device import DeviceDescription
from atom.plan.execution import ZERO1
from atom.plan.layout import Layout
from atom.plan.time.orders import interleaved
from atom.plan.transformer import transformer
from atom.plan.work import ModelWork

CHUNKS = {"nemotron4-340b": 12}
"""Virtual stages that rows leave out: NVIDIA/dgxc-benchmarking, nemotron/README.md."""


@dataclass(frozen=True)
class Job:
    """A published row: what to predict, and what was measured (seconds of a step).

    ``fitted`` is false for rows that no constant is fitted to: GPUs with an unknown power cap, and
    DeepSpeed's ZeRO-3 of 2021, which gathers a tensor at a time. They are scored. ``dims`` are the
    model's, ``gib`` is the peak of reserved memory where it was published.
    """

    id: str
    source: str
    gpu: str
    precision: str
    grade: str
    gpus: int
    model: str
    work: ModelWork
    layout: Layout
    device: DeviceDescription
    seconds: float
    fitted: bool
    dims: Mapping[str, Any]
    gib: float | None


def job(row: Mapping[str, Any]) -> Job:
    """Return the job of ``row``.

    Raises:
        UnfitError: an input is missing, or no layout of :mod:`atom.plan` expresses the row.
    """
    if row["clean"] == "C":
        raise UnfitError("class C")
    source = row["set"]
    dims = dict(row["model"])
    if not dims.get("layers") or not dims.get("dim"):
        raise UnfitError("no architecture")
    work = transformer(dims)
    device = frameworks.device(row)
    layout = _layout(row, work)
    return Job(
        id=row["id"],
        source=source,
        gpu=row["hardware"]["gpu"],
        precision=layout.execution.products,
        grade=row["clean"],
        gpus=row["hardware"]["count"],
        model=f"{dims['name']} {dims['layers']}",
        work=work,
        layout=layout,
        device=device,
        seconds=_measured(row, layout),
        dims=dims,
        gib=row["measured"].get("memory_gib") if "memory" in row.get("score", ()) else None,
        fitted="cap not said" not in row["hardware"]["gpu"]
        and "DeepSpeed" not in str(row.get("framework")),
    )


def _measured(row: Mapping[str, Any], layout: Layout) -> float:
    measured, derived = row["measured"], row["derived"]
    seconds = measured.get("step_seconds") or derived.get("step_seconds")
    if seconds:
        return float(seconds)
    tokens = layout.dp * layout.local_batch_size * layout.accumulation * layout.seq_len
    rate = measured.get("tokens_per_second_per_gpu") or derived.get("tokens_per_second_per_gpu")
    if rate:
        return float(tokens / row["hardware"]["count"] / rate)
    if row["set"].startswith("narayanan"):
        # Hardware FLOPs by the paper's equation 3, with its recomputation.
        m = row["model"]
        flops = 96 * tokens * m["layers"] * m["dim"] ** 2
        flops *= 1 + layout.seq_len / 6 / m["dim"] + m["vocab"] / 16 / m["layers"] / m["dim"]
        return float(flops / row["hardware"]["count"] / measured["tflops_per_gpu"] / 1e12)
    raise UnfitError("nothing to score")


def _layout(row: Mapping[str, Any], work: ModelWork) -> Layout:
    given, gpus = row["layout"], row["hardware"]["count"]
    tp, cp, pp = (given.get(name) or 1 for name in ("tp", "cp", "pp"))
    dp = gpus // (tp * cp * pp)
    replicas = given.get("dp_replicate") or 1
    execution = frameworks.execution(row)
    if execution.sharding == ZERO1:
        shard, replicas = 1, dp
    else:
        shard = dp // replicas
    micro, batch = given.get("micro_batch"), given.get("global_batch")
    if "local_batch" in given:
        micro = given["local_batch"] // pp
    if micro is None and row["set"] == "narayanan-2021":
        micro = {24: 16, 30: 16, 36: 16, 40: 4}.get(row["model"]["layers"], 2)
    if not micro:
        raise UnfitError("no micro-batch")
    if not batch:
        batch = micro * dp
    passes = max(batch // (dp * micro), 1)
    chunks = given.get("vp") or next((n for name, n in CHUNKS.items() if name in row["id"]), 1)
    if "Interleaved" in str(given.get("schedule")) and chunks == 1:
        chunks = 2
    if chunks * pp > row["model"]["layers"] + 2:
        raise UnfitError("more chunks than layers")
    stages = split(list(work.blocks), pp * chunks)
    old = frameworks.is_old(row)
    half = "PURE" in row["precision"] or (execution.sharding == ZERO1 and not old)
    return Layout(
        dp_replicate=replicas,
        dp_shard=shard,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=given.get("ep") or 1,
        seq_len=given["seq_len"],
        local_batch_size=micro * (passes if pp > 1 else 1),
        microbatch_size=micro,
        accumulation=1 if pp > 1 else passes,
        sequence_parallel=tp > 1 and given.get("sequence_parallel", not old),
        reshard=given.get("sharding") != "SHARD_GRAD_OP" and pp == 1,
        stages=stages,
        stages_of=tuple(tuple(range(rank, pp * chunks, pp)) for rank in range(pp)),
        in_flight=tuple({} for _ in range(pp)),
        checkpointing=frameworks.checkpointing(row),
        reduce_dtype="bfloat16" if half else "float32",
        execution=execution,
        order=interleaved(pp, chunks, passes) if pp > 1 else None,
    )


def split(parts: list[str], stages: int) -> tuple[tuple[str, ...], ...]:
    """Split layers evenly; if that cannot be, the embedding and the output layer count as one."""
    total = len(parts) + (2 if len(parts) % stages else 0)
    sizes = [total // stages + (1 if number < total % stages else 0) for number in range(stages)]
    if total != len(parts):
        sizes[0] -= 1
        sizes[-1] -= 1
    found, start = [], 0
    for size in sizes:
        found.append(tuple(parts[start : start + size]))
        start += size
    found[0] = ("tok_embeddings", *found[0])
    found[-1] = (*found[-1], "norm", "lm_head")
    return tuple(found)
