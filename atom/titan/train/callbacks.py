"""List the callbacks of a run, in their order."""

from __future__ import annotations

from atom.titan.train.callback import Callback
from atom.titan.train.faults import Faults
from atom.titan.train.recovery import Recovery
from atom.titan.train.replay import ReplayCheck
from atom.titan.train.replicas import ReplicaCheck
from atom.titan.train.samples import Samples
from atom.titan.train.startup import StartUp

CALLBACKS: tuple[type[Callback], ...] = (
    StartUp,  # first, so that what others do is no part of a phase
    Recovery,
    ReplayCheck,  # before a fault is judged: gradients with flipped bits are no numerical fault
    Faults,
    ReplicaCheck,
    Samples,
)
"""Called in this order at every point."""
