"""Choose the layout that fits and has the shortest step by the core's estimates.

:mod:`atom.plan.search` looks at all layouts: degrees, sequences of a forward pass, activation
checkpointing, how FSDP shards and frees parameters, pipeline schedules. Whatever the run sets is
kept. This module translates between a run's keys and the search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from atom.errors import UserError
from atom.plan.candidates import Candidate, Space, shared_experts
from atom.plan.device import GIB
from atom.plan.model import MODES
from atom.plan.search import HEADROOM, Found, Search
from atom.plugin import LayoutChoice, LayoutContext
from atom_parallelism.explaining import explain, name

KEYS = {
    "data_parallel_replicate_degree": "replicate",
    "data_parallel_shard_degree": "shard",
    "tensor_parallel_degree": "tp",
    "context_parallel_degree": "cp",
    "pipeline_parallel_degree": "pp",
    "expert_parallel_degree": "ep",
    "pipeline_parallel_microbatch_size": "sequences",
    "pipeline_parallel_schedule": "schedule",
}
"""Key of a run -> the name of what it sets in a search."""

RESHARD = "fsdp_reshard_after_forward"
LAYERS = "pipeline_parallel_layers_per_stage"
SPLITS = (LAYERS, "module_fqns_per_model_part")


def auto(context: LayoutContext) -> LayoutChoice:
    """Return the layout with the shortest estimated step among those that fit.

    Raises:
        UserError: none fits.
    """
    space = _space(context)
    template, problem = _template(context, space)
    if template is None:
        raise UserError(_impossible(context, space, problem), key="parallelism", value="auto")
    space = replace(space, seq_len=template.layout.seq_len)
    search = Search(
        space,
        template.layout,
        context.model,
        context.device,
        lambda candidate: context.estimate(_choice(context, space, candidate)),
    )
    found = search.best(wanted=10)
    if not found.fitting:
        raise UserError(_nothing(context, found), key="parallelism", value="auto")
    best = found.fitting[0].candidate
    return _choice(context, space, best, explanation=explain(search, found))


def _space(context: LayoutContext) -> Space:
    given = context.parallelism
    wished: dict[str, Any] = {
        short: given[key] for key, short in KEYS.items() if given.get(key, -1) != -1
    }
    if given.get(RESHARD, "default") != "default":
        wished["reshard"] = given[RESHARD] == "always"
    mode = context.activation_checkpoint.get("mode")
    counts = [p.shape[0] for p in context.model.parameters if p.expert]
    split = any(given.get(key) is not None for key in SPLITS)
    return Space(
        ranks=context.ranks,
        batch=context.global_batch_size,
        seq_len=0,
        layers=len(context.model.blocks),
        node=context.device.devices_per_node,
        experts=shared_experts(counts),
        wished=wished,
        modes=MODES if mode in (None, "auto") else (mode,),
        local=context.training.get("local_batch_size"),
        chunks=(1,) if split else Space.chunks,
    )


def _template(context: LayoutContext, space: Space) -> tuple[Any, str]:
    """Return the estimate of the first layout that is possible, or why the first is not."""
    problem = ""
    seen: set[tuple[int, ...]] = set()
    for shape in space.shapes():
        if shape.degrees in seen:
            continue
        seen.add(shape.degrees)
        for candidate in space.candidates(shape):
            try:
                return context.estimate(_choice(context, space, candidate)), ""
            except UserError as error:
                problem = problem or error.sentence()
                break
    return None, problem


def _choice(
    context: LayoutContext, space: Space, candidate: Candidate, explanation: str = ""
) -> LayoutChoice:
    shape = candidate.shape
    parallelism: dict[str, Any] = {
        "data_parallel_replicate_degree": candidate.replicate,
        "data_parallel_shard_degree": candidate.shard,
        "tensor_parallel_degree": shape.tp,
        "context_parallel_degree": shape.cp,
        "pipeline_parallel_degree": shape.pp,
    }
    if space.experts:
        parallelism["expert_parallel_degree"] = shape.ep
    if shape.pp > 1:
        parallelism["pipeline_parallel_microbatch_size"] = shape.sequences
        parallelism["pipeline_parallel_schedule"] = candidate.schedule
        if candidate.chunks > 1:
            stages = shape.pp * candidate.chunks
            parallelism[LAYERS] = space.layers_per_stage(stages)
    elif RESHARD not in context.parallelism and not candidate.reshard:
        parallelism[RESHARD] = "never"
    given = "local_batch_size" in context.training
    accumulates = candidate.accumulation > 1 and not given
    return LayoutChoice(
        parallelism=parallelism,
        activation_checkpoint={"mode": candidate.mode},
        training={"local_batch_size": candidate.local_batch_size} if accumulates else {},
        explanation=explanation,
    )


def _impossible(context: LayoutContext, space: Space, problem: str) -> str:
    if not problem and (data := space.indivisible()):
        problem = (
            f"the batch of {context.global_batch_size} cannot be divided among "
            f"{data[0]} data-parallel ranks"
        )
    reason = problem or "none has the given degrees"
    return f"no layout of {context.ranks} ranks is possible: {reason}"


def _nothing(context: LayoutContext, found: Found) -> str:
    if found.closest is None:
        return f"no layout of {context.ranks} ranks is possible: {found.problem}"
    needed, closest = found.closest
    limit = context.device.memory
    return (
        f"no layout of {context.ranks} ranks fits in {HEADROOM:.0%} of {limit / GIB:.1f} GiB each; "
        f"the closest ({name(closest)}) needs {needed / GIB:.1f} GiB; valid: more ranks, a shorter "
        "training.seq_len, or a smaller model"
    )
