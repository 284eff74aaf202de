"""Predict the time of a training step.

    step = (computation + what communication is not hidden + the pipeline's idle time
            + the optimizer's step + a constant) x (1 + sigma E[max of n]),

where the last factor is the slowest of n ranks (:func:`slowest`). docs/planning.md has the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from statistics import NormalDist

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.time import collectives, passes
from atom.plan.time.block import Parts
from atom.plan.time.data_parallel import optimizer, sharded
from atom.plan.time.own_constants import of_device
from atom.plan.time.stages import Stage, stages
from atom.plan.work import ModelWork

EXPOSED = ("tp", "cp", "ep")


@dataclass(frozen=True)
class Step:
    """Seconds of one step, of the pipeline rank that computes the longest.

    Attributes:
        products: matrix products.
        attention: attention, without its products.
        memory: memory-bound operations, quantization among them.
        launches: launches of eager operations that the GPU waits for.
        optimizer: the optimizer's step.
        other: what nothing hides: data, clipping, synchronization.
        exposed: communication that nothing hides, by mesh dimension.
        idle: waiting in the pipeline.
        stragglers: waiting for the slowest rank.
    """

    products: float
    attention: float
    memory: float
    launches: float
    optimizer: float
    other: float
    exposed: dict[str, float] = field(hash=False)
    idle: float = 0.0
    stragglers: float = 0.0

    @property
    def compute(self) -> float:
        """Return the seconds in which the rank computes."""
        return (
            self.products + self.attention + self.memory + self.launches + self.optimizer
            + self.other
        )  # fmt: skip

    @property
    def waiting(self) -> float:
        """Return the seconds in which it waits for communication."""
        return sum(self.exposed.values())

    @property
    def seconds(self) -> float:
        return self.compute + self.waiting + self.idle + self.stragglers


def step(
    work: ModelWork, layout: Layout, device: DeviceDescription, constants: Constants | None = None
) -> Step:
    """Return the time of one step of ``layout`` on ``device``."""
    constants = constants or of_device(device)
    found = stages(work, layout, device, constants)
    rank = max(range(layout.pp), key=lambda r: _busy(found, layout.stages_of[r]))
    mine = [found[stage] for stage in layout.stages_of[rank]]
    whole = _joined(mine)
    parts = (whole.forward + whole.backward) * layout.passes
    idle = sent = 0.0
    if layout.pp > 1:
        send = _send(work, layout, device, constants)
        times = [(stage.forward.seconds, stage.backward.seconds) for stage in found]
        # Each send and receive starts on the rank's own time, too.
        assert layout.order is not None
        total = layout.order.duration(times, send) * layout.accumulation
        idle = max(total - parts.seconds, 0.0)
        sent = min(2 * len(mine) * layout.passes * collectives.POINT_TO_POINT, idle)
        idle -= sent
    cost = sharded(whole, layout, device, constants)
    exposed = {name: getattr(parts, name) for name in EXPOSED}
    exposed |= {"pp": sent, "fsdp": cost.fsdp, "dp_replicate": cost.replicate}
    plain = Step(
        products=parts.products,
        attention=parts.attention,
        memory=parts.memory,
        launches=parts.launches,
        optimizer=optimizer(whole, layout, device, constants),
        other=constants.step,
        exposed={name: seconds for name, seconds in exposed.items() if seconds},
        idle=idle,
    )
    late = plain.seconds * constants.straggler * slowest(layout.ranks)
    values = {f.name: getattr(plain, f.name) for f in fields(Step)}
    return Step(**(values | {"stragglers": late}))


def slowest(ranks: int) -> float:
    """Return the expected maximum of ``ranks`` standard normal numbers (Blom, 1958)."""
    if ranks < 2:
        return 0.0
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def _busy(found: list[Stage], mine: tuple[int, ...]) -> float:
    return sum(found[stage].forward.seconds + found[stage].backward.seconds for stage in mine)


def _joined(mine: list[Stage]) -> Stage:
    return Stage(
        forward=sum((stage.forward for stage in mine), Parts()),
        backward=sum((stage.backward for stage in mine), Parts()),
        blocks=sum(stage.blocks for stage in mine),
        numel=sum(stage.numel for stage in mine),
        experts=sum(stage.experts for stage in mine),
    )


def _send(
    work: ModelWork, layout: Layout, device: DeviceDescription, constants: Constants
) -> float:
    size = layout.tokens * work.width * passes.ELEMENT
    size /= layout.tp if layout.sequence_parallel else 1
    inside = layout.ranks // layout.pp < device.devices_per_node
    return collectives.send(size, inside=inside, device=device, constants=constants)
