"""Detect silent data corruption: compare the bits of replicated parameters.

Replicated parameters get the same gradients and the same updates. A bit flipped in one replica
stays flipped, and the loss does not show it for a long time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from atom.run_dir import events
from atom.titan.train.callback import Callback, is_due


class ReplicaCheck(Callback):
    """A callback that compares replicas after every ``faults.replica_check_interval``-th step.

    Raises:
        RunError: they differ.
    """

    name = "replicas"

    def after_step(self) -> None:
        trainer = self.trainer
        if not is_due(trainer.config.faults.replica_check_interval, trainer.step):
            return
        named = [pair for part in trainer.model_parts for pair in part.named_parameters()]
        words = differing(named, trainer.parallel_dims.get_optional_mesh("dp_replicate"))
        if words is not None:
            trainer.fail(
                events.REPLICAS_DIFFER,
                f"copies of parameters differ after step {trainer.step}: {words}",
            )


_CHUNK = 1 << 24
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return a checksum of all bits of ``tensor`` and their positions, on its device.

    It is the sum of the elements' bits, each times its position, in 64 bits: any single flipped bit
    changes it.
    """
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for begin in range(0, len(bits), _CHUNK):
        part = bits[begin : begin + _CHUNK].to(torch.int64)
        # Odd factors, so that no bit is multiplied out of the 64.
        places = 2 * torch.arange(begin, begin + len(part), device=tensor.device) + 1
        total += (part * places).sum()
    return total


def differing(
    parameters: Iterable[tuple[str, torch.Tensor]], replicas: DeviceMesh | None
) -> str | None:
    """Return the ranks that differ, or None; the answer is the same on every rank.

    It reads each parameter once, in place, and waits for the device once. Call it on all ranks at
    the same time.

    Args:
        parameters: with names; a DTensor is compared over the mesh dimensions that its placements
            replicate.
        replicas: the ranks that replicate plain tensors, if any.
    """
    groups: dict[dist.ProcessGroup, list[tuple[str, torch.Tensor]]] = defaultdict(list)
    for name, parameter in parameters:
        if isinstance(parameter, DTensor):
            total = checksum(parameter.to_local())
            mesh = parameter.device_mesh
            for dim, placement in enumerate(parameter.placements):
                if placement.is_replicate() and mesh.size(dim) > 1:
                    groups[mesh.get_group(dim)].append((name, total))
        elif replicas is not None:
            groups[replicas.get_group()].append((name, checksum(parameter)))
    said = [_compared(group, named) for group, named in groups.items()]
    mine = next((words for words in said if words), None)
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return next((words for words in found if words), None)


def _compared(group: dist.ProcessGroup, named: list[tuple[str, torch.Tensor]]) -> str | None:
    totals_P = torch.stack([total for _, total in named])
    ranks = dist.get_process_group_ranks(group)
    gathered = totals_P.new_empty(len(ranks) * len(named))  # gloo allows one dimension only
    dist.all_gather_into_tensor(gathered, totals_P, group=group)
    rows = gathered.view(len(ranks), len(named)).tolist()
    if all(row == rows[0] for row in rows):
        return None
    number = next(p for p in range(len(named)) if len({row[p] for row in rows}) > 1)
    column = [row[number] for row in rows]
    usual = max(column, key=column.count)
    odd = [rank for rank, total in zip(ranks, column, strict=True) if total != usual]
    if 2 * column.count(usual) > len(column):
        who = f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} differ{'s' * (len(odd) == 1)}"
        return f"{who} from {len(ranks) - len(odd)} others in {named[number][0]}"
    return f"ranks {', '.join(map(str, ranks))} differ in {named[number][0]}"
