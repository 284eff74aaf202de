"""Read the sequences of a lane: from one source, or from the sources of a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from atom.data import numbering
from atom.data.dealing import dealt, readings
from atom.data.documents import LeftOut, Stream
from atom.data.held_out import Side
from atom.data.ids import beyond
from atom.data.mixing import Schedule, key_of, leaves
from atom.data.packing import PACKERS, Packed, Packer, Packing, Part, Position, Span
from atom.errors import UserError
from atom.plugin import DocumentEncoder, LaneSource

IGNORED = -100
"""The label of padding, as in torch's cross-entropy: it is not trained on."""

State = npt.NDArray[np.int64]
"""The state of a lane between two steps.

From one source it is the packer's position, three integers. In a mixture of S sources it has
1 + 3·S: the number of steps read, and the positions in the sources, in their order.
"""

ALONE = ("",)
"""The names of the sources of a run that mixes none."""


def state_size(names: Sequence[str]) -> int:
    """Return the number of integers of the :data:`State` of a lane with these sources."""
    return 3 if tuple(names) == ALONE else 1 + 3 * len(names)


@dataclass(frozen=True)
class Reading:
    """How all lanes of a run are read.

    Attributes:
        source: the source, dealt to lanes.
        seed: seed of the order.
        lanes: sequences of the global batch.
        packing: how documents become sequences.
        seq_len: tokens of a sequence.
        steps: steps of the run, for the stages of a mixture.
        begin: steps that the run has trained before it begins to read the source.
        vocab_size: an id beyond it is refused; None: ids are not checked.
        names: the sources of a mixture in the order of the run; empty: in that of the mixture.
        measured: sources that preflight has compared with the run's length, so that they may be
            read as often as the steps require.
        side: the documents that are read, of those that a split holds out or leaves; None: all.
        sequences: sequences of an example, whose labels are numbered
            (:mod:`atom.data.numbering`); None: labels are ids.
    """

    source: LaneSource
    seed: int
    lanes: int
    seq_len: int
    packing: Packing = "concat"
    steps: int = 1
    begin: int = 0
    vocab_size: int | None = None
    names: tuple[str, ...] = ()
    measured: frozenset[str] = frozenset()
    side: Side | None = None
    sequences: int | None = None


class Sources:
    """The sources of a run by name, and the schedule by which they are mixed.

    Attributes:
        sources: name -> source; one named ``""`` if nothing is mixed.
        schedule: None if nothing is mixed.
        most: source -> how often its documents may be read.
    """

    def __init__(self, reading: Reading) -> None:
        mixed = leaves(
            reading.source, reading.lanes * reading.seq_len, reading.steps, reading.begin
        )
        self.sources: Mapping[str, LaneSource] = {"": reading.source}
        self.schedule: Schedule | None = None
        self.most: Mapping[str, float] = {}
        if mixed is not None:
            names = reading.names or tuple(mixed.sources)
            self.sources = {name: dealt(mixed.sources[name]) for name in names}
            self.most = {
                name: most
                for name, most in mixed.max_epochs.items()
                if name not in reading.measured
            }
            self.schedule = Schedule(names, mixed.stages, reading.lanes, seed=reading.seed)

    @property
    def names(self) -> tuple[str, ...]:
        """The sources in the order of a lane's state."""
        return tuple(self.sources)


class Row(NamedTuple):
    """The three arrays [L] of a sequence, int64, to be written."""

    inputs: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def write(self, parts: list[Part]) -> None:
        """Write parts of documents one after another, and fill the rest with padding.

        Positions count from 0 at the beginning of each part. Padding is a part of its own, and is
        not trained on.
        """
        at = 0
        for part in parts:
            begin, count, tokens = part.begin, part.count, part.document.tokens
            here = slice(at, at + count)
            self.inputs[here] = tokens[begin : begin + count]
            labels = tokens[begin + 1 : begin + count + 1]
            if (trained := part.document.trained) is not None:
                labels = np.where(trained[begin + 1 : begin + count + 1], labels, IGNORED)
            self.labels[here] = labels
            self.positions[here] = np.arange(count)
            for first in part.document.begins:
                self.labels[at + first - 1] = IGNORED
                self.positions[at + first : at + count] = np.arange(count - first)
            at += count
        self.inputs[at:] = 0
        self.labels[at:] = IGNORED
        self.positions[at:] = np.arange(len(self.positions) - at)

    def number(self, parts: list[Part], sequences: int) -> list[bytes]:
        """Number the labels by their sequences, from 0; return the digests of the sequences.

        Args:
            parts: whole examples, as written.
            sequences: of each example.
        """
        digests: list[bytes] = []
        at = 0
        for part in parts:
            document = part.document
            ends = (*document.begins, len(document.tokens))
            if part.cut or part.begin or len(ends) != sequences:
                raise RuntimeError(
                    f"the objective's encoder made of {document.id} an example of {len(ends)} "
                    f"sequences and {len(document.tokens)} tokens; valid: {sequences} sequences "
                    "that fit into training.seq_len together"
                )
            for begin, end in zip((0, *document.begins), ends, strict=True):
                trained = document.trained
                digests.append(
                    numbering.digest(
                        document.tokens[begin:end], None if trained is None else trained[begin:end]
                    )
                )
                here = slice(at + begin, at + end - 1)
                self.labels[here] = numbering.numbered(self.labels[here], len(digests))
            at += part.count
        return digests


class Lane:
    """A lane: one sequence of every step.

    Args:
        number: its number, from 0.
        reading: how all lanes are read.
        sources: the sources of the run.
        encoder: converts documents to tokens.

    Attributes:
        spans: the parts of documents in the last sequence.
        digests: those of the examples' sequences in it, if its labels are numbered.
    """

    def __init__(
        self, number: int, reading: Reading, sources: Sources, encoder: DocumentEncoder
    ) -> None:
        self.number = number
        self.spans: list[Span] = []
        self.digests: list[bytes] = []
        self._reading = reading
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
                    name=key_of(name) if name else "dataset",
                    prefix=f"{name}: " if name else "",
                    side=reading.side,
                )
            )
            for name, source in sources.sources.items()
        ]

    def read(self, row: Row) -> None:
        """Write the sequence of the next step.

        Raises:
            UserError: a source is empty, is not the one of the state, would be read too often, or
                has ids that the tokenizer has not.
        """
        self.write(row, self.parts())

    def write(self, row: Row, parts: list[Part]) -> None:
        """Write parts of documents as a sequence.

        Raises:
            UserError: they have ids that the tokenizer has not.
        """
        row.write(parts)
        self.spans = [part.span for part in parts]
        if (size := self._reading.vocab_size) is not None:
            smallest, largest = row.inputs.min(), max(row.inputs.max(), row.labels.max())
            if smallest < 0 or largest >= size:
                documents = (part.document for part in parts)
                raise next(filter(None, (beyond(d.id, d.tokens, size) for d in documents)))
        if self._reading.sequences is not None:
            self.digests = row.number(parts, self._reading.sequences)

    def parts(self) -> list[Part]:
        """Return the parts of documents in the sequence of the next step, without reading stored
        tokens.
        """
        schedule = self._sources.schedule
        chosen = 0
        if schedule is not None:
            chosen = int(schedule.choice(self._step, slice(self.number, self.number + 1))[0])
        packer = self._packers[chosen]
        number = self._number(chosen) if packer.numbered else 0
        parts = packer.read(self._reading.seq_len, number)
        if schedule is not None:
            self._check_epochs(schedule.names[chosen], packer)
        self._step += 1
        return parts

    def skip(self, steps: int) -> None:
        """Leave out ``steps`` steps: at once if sequences are numbered, otherwise by packing."""
        if all(packer.numbered for packer in self._packers):
            self._step += steps
            return
        for _ in range(steps):
            self.parts()

    def _number(self, chosen: int) -> int:
        """Return the number of the next sequence among all that the run reads from its source."""
        schedule = self._sources.schedule
        if schedule is None:
            return self._step * self._reading.lanes + self.number
        _, first, _ = self._packers[chosen].position
        others = schedule.choices(self._step)[: self.number]
        return schedule.before(self._step, chosen) - first + int((others == chosen).sum())

    def _check_epochs(self, name: str, packer: Packer) -> None:
        most = self._sources.most.get(name)
        if most is None:
            return
        source, lanes = self._sources.sources[name], self._reading.lanes
        each = 1 if packer.numbered else readings(source, lanes)
        if (packer.position[0] + 1) * each > most:
            raise UserError(
                f"in step {self._step + 1}, sequence {self.number} of the global batch would read "
                "it more often",
                valid="more, a smaller weight, or fewer steps",
                key=f"{packer.stream.name}.max_repetitions",
                value=most,
            )

    @property
    def state(self) -> State:
        """The :data:`State` of the lane."""
        positions = [packer.position for packer in self._packers]
        if self._sources.schedule is not None:
            return np.array([self._step, *chain.from_iterable(positions)], dtype=np.int64)
        if self._packers[0].numbered:
            return np.array([positions[0][0], self._step, 0], dtype=np.int64)
        return np.array(positions[0], dtype=np.int64)

    def go_to(self, state: State, names: Sequence[str] | None = None, step: int = 0) -> None:
        """Go to a :attr:`state`; sources that have no position in it begin.

        Args:
            state: the state.
            names: its sources; None: those of the run.
            step: its step, if it is of a run that mixed none.
        """
        names = self._sources.names if names is None else names
        numbers = state.tolist()
        self._step = step
        if tuple(names) != ALONE:
            self._step, *numbers = numbers
        elif self._packers[0].numbered:
            self._step = numbers[1]
        triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        positions = dict(zip(names, triples, strict=True))
        for place, name in enumerate(self._sources.names):
            self._packers[place].go_to(positions.get(name) or self._first(place))

    def begin(self, step: int) -> None:
        """Begin all sources, in a run that has trained ``step`` steps."""
        self._step = step if self._sources.schedule is not None else 0
        for place, packer in enumerate(self._packers):
            packer.go_to(self._first(place))

    def _first(self, place: int) -> Position:
        """Return the position of a packer that has read nothing before this step."""
        schedule = self._sources.schedule
        if schedule is None or not self._packers[place].numbered:
            return 0, 0, 0
        return 0, schedule.before(self._step, place), 0

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
