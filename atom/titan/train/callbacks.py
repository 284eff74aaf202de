"""List the callbacks of a run, in their order."""

from __future__ import annotations

from atom.titan.train.callback import Callback
from atom.titan.train.faults import Faults
from atom.titan.train.recovery import Recovery
from atom.titan.train.references import References
from atom.titan.train.replay import ReplayCheck
from atom.titan.train.replicas import ReplicaCheck
from atom.titan.train.samples import Samples
from atom.titan.train.startup import StartUp
from atom.titan.train.stream import Provenance
from atom.titan.train.teaching import Teaching
from atom.titan.train.validation import Validation

CALLBACKS: tuple[type[Callback], ...] = (
    StartUp,  # first, so that a phase does not include other callbacks' work
    Provenance,
    Recovery,
    ReplayCheck,  # before faults are judged: flipped bits are not a numerical fault
    Faults,
    ReplicaCheck,
    References,
    Teaching,
    Validation,
    Samples,
)
"""Called in this order at every point."""
