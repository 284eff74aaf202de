"""Combine memory, communication and time into the estimate of one layout."""

from __future__ import annotations

from dataclasses import dataclass

from atom.plan.communication import communication
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.memory import Memory, worst
from atom.plan.model import ModelDescription
from atom.plan.time.step import Step, step
from atom.plan.work import ModelWork, work


@dataclass(frozen=True)
class Estimate:
    """The estimate of one layout on one device.

    Attributes:
        layout: the layout estimated.
        memory: memory of the rank that needs the most.
        rank: that rank's number in the pipeline.
        sent: bytes that it sends in a step, by mesh dimension.
        step: time of a step.
        limit: the device's memory, in bytes.
    """

    layout: Layout
    memory: Memory
    rank: int
    sent: dict[str, int]
    step: Step
    limit: int

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.limit


def estimate(
    model: ModelDescription,
    layout: Layout,
    device: DeviceDescription,
    of: ModelWork | None = None,
) -> Estimate:
    """Return the estimate of ``layout``; ``of`` is the work of the model, if it is known."""
    rank, memory = worst(model, layout, reserve=device.reserve)
    return Estimate(
        layout=layout,
        memory=memory,
        rank=rank,
        sent=communication(model, layout, rank=rank),
        step=step(of or work(model), layout, device),
        limit=device.memory,
    )
