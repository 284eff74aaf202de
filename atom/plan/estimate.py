"""All that a plan says of one layout."""

from __future__ import annotations

from dataclasses import dataclass

from atom.plan.communication import communication
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.memory import Memory, worst
from atom.plan.model import ModelDescription
from atom.plan.step import Step, step


@dataclass(frozen=True)
class Estimate:
    """The estimate of one layout on one device.

    Attributes:
        layout: what it is of.
        memory: of the rank that needs the most.
        rank: that rank's number in the pipeline.
        sent: bytes that it sends in a step, by dimension of the mesh.
        step: time of a step.
        limit: bytes that the device has.
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


def estimate(model: ModelDescription, layout: Layout, device: DeviceDescription) -> Estimate:
    """Return the estimate of ``layout``."""
    rank, memory = worst(model, layout, reserve=device.reserve)
    return Estimate(
        layout=layout,
        memory=memory,
        rank=rank,
        sent=communication(model, layout, rank=rank),
        step=step(model, layout, device),
        limit=device.memory,
    )
