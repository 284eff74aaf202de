"""Read the sequences of a lane: from one source, or from the sources of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from atom.data.dealing import dealt
from atom.data.documents import Encoder, LeftOut, Stream
from atom.data.mixing import Schedule, leaves
from atom.data.packing import PACKERS, Packed, Packer, Packing, Row, Span
from atom.errors import UserError
from atom.plugin import LaneSource

State = npt.NDArray[np.int64]
"""The state of a lane between two steps.

From one source it is the packer's position, three integers. In a mixture of S sources it has
1 + 3·S: the number of steps read, and the positions in the sources, in their order.
"""


@dataclass(frozen=True)
class Reading:
    """How all lanes of a run are read.

    Attributes:
        source: the source, dealt to lanes.
        seed: seed of the order.
        lanes: sequences of the global batch.
        packing: how documents become sequences.
        steps: steps of the run, and
        seq_len: tokens of a sequence, for the stages of a mixture.
    """

    source: LaneSource
    seed: int
    lanes: int
    packing: Packing = "concat"
    steps: int = 1
    seq_len: int = 1


class Sources:
    """The sources of a run by name, and the schedule by which they are mixed.

    Attributes:
        sources: name -> source; one named ``""`` if nothing is mixed.
        schedule: None if nothing is mixed.
        most: source -> number of epochs that may begin.
    """

    def __init__(self, reading: Reading) -> None:
        mixed = leaves(reading.source, reading.lanes * reading.seq_len, reading.steps)
        self.sources: Mapping[str, LaneSource] = {"": reading.source}
        self.schedule: Schedule | None = None
        self.most: Mapping[str, float] = {}
        if mixed is not None:
            self.sources = {name: dealt(source) for name, source in mixed.sources.items()}
            self.most = mixed.max_epochs
            self.schedule = Schedule(
                list(mixed.sources), mixed.stages, reading.lanes, seed=reading.seed
            )


class Lane:
    """A lane: one sequence of every step.

    Args:
        number: its number, from 0.
        reading: how all lanes are read.
        sources: the sources of the run.
        encoder: the tokenizer.

    Attributes:
        spans: the parts of documents in the last sequence.
    """

    def __init__(self, number: int, reading: Reading, sources: Sources, encoder: Encoder) -> None:
        self.number = number
        self.spans: list[Span] = []
        self._sources = sources
        self._step = 0
        self._packers = [
            PACKERS[reading.packing](
                Stream(
                    source,
                    number,
                    reading.lanes,
                    seed=reading.seed,
                    encoder=encoder,
                    name=f"dataset.sources.{name}" if name else "dataset",
                )
            )
            for name, source in sources.sources.items()
        ]

    def read(self, row: Row) -> None:
        """Write the sequence of the next step.

        Raises:
            UserError: a source is empty, is not the one of the state, or would be read too often.
        """
        schedule = self._sources.schedule
        chosen = 0 if schedule is None else int(schedule.choices(self._step)[self.number])
        packer = self._packers[chosen]
        self.spans = packer.read(row)
        if schedule is not None:
            self._check_epochs(schedule.names[chosen], packer)
        self._step += 1

    def _check_epochs(self, name: str, packer: Packer) -> None:
        most = self._sources.most.get(name)
        if most is not None and self.spans[-1][0] >= most:
            raise UserError(
                f"at step {self._step + 1} it would be read more often",
                valid="more, a smaller weight, or fewer steps",
                key=f"{packer.stream.name}.max_repetitions",
                value=most,
            )

    @property
    def state(self) -> State:
        """The :data:`State` of the lane."""
        positions = [packer.position for packer in self._packers]
        if self._sources.schedule is None:
            return np.array(positions[0], dtype=np.int64)
        return np.array([self._step, *chain.from_iterable(positions)], dtype=np.int64)

    def go_to(self, state: State) -> None:
        """Go to a :attr:`state`; sources beyond those of the state begin."""
        numbers = state.tolist()
        if self._sources.schedule is not None:
            self._step, *numbers = numbers
        numbers += [0] * (3 * len(self._packers) - len(numbers))
        triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        for packer, position in zip(self._packers, triples, strict=True):
            packer.go_to(position)

    def left_out(self) -> LeftOut:
        """Return the counts of skipped documents since the last call."""
        counts = LeftOut()
        for packer in self._packers:
            counts.add(packer.stream.left_out)
            packer.stream.left_out = LeftOut()
        return counts

    def packed(self) -> Packed:
        """Return the counts of what was packed since the last call."""
        counts = Packed()
        for packer in self._packers:
            counts.add(packer.packed)
            packer.packed = Packed()
        return counts
