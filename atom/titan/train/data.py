"""Load tokenized and packed documents in an order that is independent of the layout.

A global batch of G sequences is G *lanes*. Lane i reads its own documents of the source and packs
them into sequence i of every step, whatever the number of ranks; data-parallel rank r of D owns
lanes r·G/D to (r+1)·G/D - 1. :mod:`atom.data.lanes` reads them; a thread reads a few steps ahead.

With a schedule of batches, G is the largest one. A step of S sequences reads the S lanes after
those of the step before, and lane 0 follows lane G - 1; rank r owns lanes r, r + D, …, so that it
has S/D of any S lanes in a row, if D divides S and G.

Shape suffixes: B = sequences per call, L = tokens per sequence, S = sequences of this rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer

from atom.data import numbering
from atom.data.documents import LeftOut, TextEncoder
from atom.data.held_out import Side
from atom.data.lanes import Lane, Reading, Row, Sources, State, state_size
from atom.data.packing import Packed, Packing, Span
from atom.errors import UserError
from atom.plugin import DocumentEncoder, LaneSource
from atom.recipe.batches import Batches
from atom.titan.train.read_ahead import ReadAhead

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

_CURSOR = "cursor"

EncoderOf = Callable[[Any], DocumentEncoder]
"""Returns the encoder of an objective for a tokenizer."""


class DocumentLoader(BaseDataLoader):
    """A data loader that yields ``({"input": [B, L], "positions": [B, L]}, labels [B, L])``
    forever.

    All tensors are int64. A step of G sequences takes G / (D * B) calls on each of D ranks; they
    return the rank's lanes in order, B at a time, and then start over.

    The state is ``{"lane.I": state}`` of the rank's own lanes, see :data:`atom.data.lanes.State`.
    Keys name lanes, not ranks, so a checkpoint can be loaded on any number of ranks. With a
    schedule of batches, ``{"cursor": lane}`` is the first lane of the next step.

    Attributes:
        left_out: documents without anything to train on, up to the last step.
        packed: what was packed, up to the last step.
        seq_len: tokens of a sequence.
        waited: seconds for which the training thread has waited for data.
        sources: the sources in the order of the state; see :data:`atom.data.lanes.ALONE`.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        source: LaneSource
        encoder: EncoderOf | None = None
        """Of the run's objective; None: text is predicted."""
        seed: int
        global_batch_size: int
        """In sequences; the largest one, if there is a schedule."""
        batches: Batches | None = None
        """The schedule of batches; None: the global batch size in every step."""
        packing: Packing = "concat"
        ahead: int = 0
        """Steps to read ahead, in a thread."""
        steps: int = 1
        """Of the run, for the stages of a mixture."""
        begin: int = 0
        """Steps before the first one that reads the source."""
        vocab_size: int | None = None
        """An id beyond it is refused."""
        sources: tuple[str, ...] = ()
        """The sources of a mixture, in the order of the run."""
        measured: frozenset[str] = frozenset()
        """Sources of a mixture that are known to suffice."""
        side: Side | None = None
        """The documents to train on; None: all."""
        digests: bool = True
        """Whether the tokens of a step have a digest."""
        sequences: int | None = None
        """Sequences of an example, whose labels are numbered; None: labels are ids."""
        each_token: bool = False
        """Number each predicted token instead, over all sequences of the rank."""

        def reading(self, seq_len: int) -> Reading:
            """Return how all lanes are read; a mixture counts how often all lanes are read."""
            of = self.batches or Batches((), self.global_batch_size)
            return Reading(
                source=self.source,
                seed=self.seed,
                lanes=self.global_batch_size,
                seq_len=seq_len,
                packing=self.packing,
                steps=of.rounds(self.steps, self.begin),
                begin=of.rounds(self.begin),
                vocab_size=self.vocab_size,
                names=self.sources,
                measured=self.measured,
                side=self.side,
                sequences=self.sequences,
            )

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: BaseTokenizer,
        seq_len: int,
        local_batch_size: int,
        snapshot_every_n_steps: int | None = None,  # noqa: ARG002 (torchtitan gives it)
    ) -> None:
        """Make the loader of one rank.

        Args:
            config: the documents and their order.
            dp_world_size: D, the number of data-parallel ranks.
            dp_rank: this rank's number among them.
            tokenizer: its ``encode(text, add_bos=, add_eos=)`` returns the ids of a document.
            seq_len: L, in tokens.
            local_batch_size: B; with pipeline parallelism, the sequences of one micro-batch.

        Raises:
            UserError: the global batch does not divide evenly.
        """
        lanes = config.global_batch_size
        self._batches = config.batches or Batches((), lanes)
        unit = dp_world_size * local_batch_size
        for size in self._batches.sizes:
            if size < 1 or size % unit:
                raise UserError(
                    f"must be a multiple of {unit} ({dp_world_size} data-parallel ranks x "
                    f"{local_batch_size} sequences)",
                    key="training.global_batch_size",
                    value=size,
                )
        share = lanes // dp_world_size
        own = range(dp_rank * share, (dp_rank + 1) * share)
        if config.batches is not None:
            own = range(dp_rank, lanes, dp_world_size)
        reading = config.reading(seq_len)
        sources = Sources(reading)
        self.sources = sources.names
        self._expected: tuple[tuple[str, ...], int] | None = None
        self.left_out = LeftOut()
        self.packed = Packed()
        encoder = (config.encoder or TextEncoder)(tokenizer)
        self._lanes = [Lane(lane, reading, sources, encoder) for lane in own]
        self._unit = unit
        self._each_token = config.each_token
        self._scheduled = config.batches is not None
        self._next = 1
        """The step that is read next."""
        self._cursor = 0
        """The first lane of that step, if there is a schedule."""
        self._saved_cursor = True
        """Whether the state that is loaded next has a cursor."""
        self._global_batch_size = lanes
        self._local_batch_size = local_batch_size
        self.seq_len = seq_len
        self._digests = config.digests
        self._handed_out = 0
        """Lanes of the current step already returned."""
        self._step: _Step | None = None
        """The step whose lanes are returned."""
        self._states = self._current()
        self._ahead = ReadAhead(self._read, config.ahead)

    @property
    def digest(self) -> int:
        """Digest of the tokens of this rank's sequences in the last step; those of all ranks,
        summed modulo 2**64, are the digest of the global batch."""
        return self._step.digest if self._step is not None else 0

    @property
    def waited(self) -> float:
        return self._ahead.waited

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch()

    def _batch(self) -> Batch:
        if self._handed_out == 0:
            self._step = self._ahead.next()
            self.left_out.add(self._step.left_out)
            self.packed.add(self._step.packed)
        assert self._step is not None
        first, last = self._handed_out, self._handed_out + self._local_batch_size
        self._handed_out = last % len(self._step.samples)
        if self._handed_out == 0:
            self._states = self._step.states
        inputs_BL, labels_BL, positions_BL = (tensor[first:last] for tensor in self._step.tensors)
        return {"input": inputs_BL, "positions": positions_BL}, labels_BL

    def _read(self) -> _Step:
        """Read the next step of all lanes; called in the thread that reads ahead."""
        lanes = self._lanes
        if self._scheduled:
            size = self._batches.size(self._next)
            lanes = _in_turn(lanes, self._cursor, size, self._global_batch_size)
            self._cursor = (self._cursor + size) % self._global_batch_size
        self._next += 1
        shape = (3, len(lanes), self.seq_len)
        tensors = torch.empty(shape, dtype=torch.int64)
        inputs, labels, positions = tensors.numpy()
        left_out, packed, digest = LeftOut(), Packed(), 0
        sequences: list[bytes] = []
        for number, lane in enumerate(lanes):
            lane.read(Row(inputs[number], labels[number], positions[number]))
            if sequences:
                labels[number] = numbering.numbered(labels[number], len(sequences))
            sequences += lane.digests
            left_out.add(lane.left_out())
            packed.add(lane.packed())
            if self._digests:
                digest += _digest(lane.number, inputs[number], labels[number])
        if self._each_token:
            predicted = (ids := numbering.ids(labels)) >= 0
            labels[...] = numbering.numbered(ids, np.cumsum(predicted).reshape(labels.shape))
        samples = {lane.number: lane.spans for lane in lanes}
        return _Step(
            tensors, self._current(), samples, left_out, packed, _signed(digest), sequences
        )

    def _current(self) -> dict[str, State]:
        states = {f"lane.{lane.number}": lane.state for lane in self._lanes}
        if self._scheduled:
            states[_CURSOR] = np.array([self._cursor], dtype=np.int64)
        return states

    def passes(self, step: int) -> int:
        """Return the number of calls of this loader for a step."""
        return self._batches.size(step) // self._unit

    def follow(self, step: int) -> None:
        """Let the next step that is read be the one after ``step``: its size depends on it.

        Called after the position was loaded, before anything is read.
        """
        self._next = step + 1

    def samples(self) -> dict[int, list[Span]]:
        """Return, for each lane of this rank, the parts of documents in the last step."""
        return dict(self._step.samples) if self._step is not None else {}

    def sequences(self) -> list[bytes]:
        """Return the digests of the examples' sequences in the last step, by their numbers."""
        return self._step.sequences if self._step is not None else []

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of each lane of this rank, in separate tensors."""
        names = [n for n in self._states if n != _CURSOR or self._saved_cursor]
        if self._expected is not None:
            size = state_size(self._expected[0])
            return {n: torch.zeros(1 if n == _CURSOR else size, dtype=torch.int64) for n in names}
        assert self._handed_out == 0, "the state is taken between two steps"
        return {name: torch.from_numpy(self._states[name].copy()) for name in names}

    def expect_cursor(self, there: bool) -> None:
        """Prepare for a state with a cursor, or for one of a run without a schedule of batches."""
        self._saved_cursor = there

    def expect(self, sources: Sequence[str], step: int) -> None:
        """Prepare for the state of a loader with other sources.

        Until it is loaded, :meth:`state_dict` has the shapes of that state.

        Args:
            sources: its sources, in their order.
            step: the number of steps that it has read, if it mixed none.
        """
        self._expected = tuple(sources), step

    def begin(self, step: int) -> None:
        """Begin all sources, in a run that has trained ``step`` steps: a mixture's stages count
        them.
        """
        with self._moved():
            self._cursor = 0
            for lane in self._lanes:
                lane.begin(self._batches.rounds(step))

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Resume from the states of a loader with as many lanes.

        Raises:
            UserError: the state is of another global batch size.
        """
        beyond = f"lane.{self._global_batch_size}"
        if beyond in state_dict or any(f"lane.{n.number}" not in state_dict for n in self._lanes):
            raise UserError(
                "the checkpoint was saved with another",
                valid="that one, or a new run.dir",
                key="training.global_batch_size",
                value=self._global_batch_size,
            )
        names, step = self._expected or (self.sources, 0)
        self._expected = None
        self._saved_cursor = True
        with self._moved():
            # Without a schedule, all lanes have been read equally often.
            self._cursor = int(state_dict[_CURSOR]) if _CURSOR in state_dict else 0
            for lane in self._lanes:
                lane.go_to(state_dict[f"lane.{lane.number}"].numpy(), names, step)

    @contextmanager
    def _moved(self) -> Iterator[None]:
        """Let the lanes be moved to another position, from which the next step is read."""
        self._ahead.restart()
        yield
        self._states = self._current()
        self._handed_out = 0

    def close(self) -> None:
        """Stop reading ahead."""
        self._ahead.restart()


@dataclass(frozen=True)
class _Step:
    """A step of all lanes of this rank.

    Attributes:
        tensors: inputs, labels and positions: [3, S, L].
        states: the states of the lanes after it.
        samples: the parts of documents in each lane.
        left_out: documents that were skipped.
        packed: what was packed.
        digest: sum of the digests of the sequences, modulo 2**64.
        sequences: digests of the examples' sequences, if labels are numbered.
    """

    tensors: torch.Tensor
    states: dict[str, State]
    samples: dict[int, list[Span]]
    left_out: LeftOut
    packed: Packed
    digest: int
    sequences: list[bytes]


def _in_turn(lanes: list[Lane], first: int, size: int, of: int) -> list[Lane]:
    """Return those of ``lanes`` that are among the ``size`` lanes from lane ``first`` on."""
    places = ((lane.number - first) % of for lane in lanes)
    found = ((place, lane) for place, lane in zip(places, lanes, strict=True) if place < size)
    return [lane for _, lane in sorted(found, key=lambda each: each[0])]


def _digest(lane: int, inputs: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> int:
    """Return a digest of 64 bits of a lane's sequence."""
    found = hashlib.blake2b(lane.to_bytes(8, "little"), digest_size=8)
    for ids in (inputs, labels):
        found.update(ids.astype("<i4").tobytes())
    return int.from_bytes(found.digest(), "little")


def _signed(number: int) -> int:
    """Return ``number`` modulo 2**64 as a signed integer of 64 bits, as torch sums them."""
    return (number + 2**63) % 2**64 - 2**63
