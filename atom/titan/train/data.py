"""Load tokenized and packed documents in an order that is independent of the layout.

A global batch of G sequences is G *lanes*. Lane i reads its own documents of the source and packs
them into sequence i of every step, whatever the number of ranks; data-parallel rank r of D owns
lanes r·G/D to (r+1)·G/D - 1. :mod:`atom.data.lanes` reads them; a thread reads a few steps ahead.

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

from atom.data.documents import LeftOut, TextEncoder
from atom.data.held_out import Side
from atom.data.lanes import Lane, Reading, Row, Sources, State, state_size
from atom.data.packing import Packed, Packing, Span
from atom.errors import UserError
from atom.plugin import DocumentEncoder, LaneSource
from atom.titan.train.read_ahead import ReadAhead

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

EncoderOf = Callable[[Any], DocumentEncoder]
"""Returns the encoder of an objective for a tokenizer."""


class DocumentLoader(BaseDataLoader):
    """A data loader that yields ``({"input": [B, L], "positions": [B, L]}, labels [B, L])``
    forever.

    All tensors are int64. A step of G sequences takes G / (D * B) calls on each of D ranks; they
    return the rank's lanes in order, B at a time, and then start over.

    The state is ``{"lane.I": state}`` of the rank's own lanes, see :data:`atom.data.lanes.State`.
    Keys name lanes, not ranks, so a checkpoint can be loaded on any number of ranks.

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
        """In sequences."""
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

        def reading(self, seq_len: int) -> Reading:
            """Return how all lanes are read."""
            return Reading(
                source=self.source,
                seed=self.seed,
                lanes=self.global_batch_size,
                seq_len=seq_len,
                packing=self.packing,
                steps=self.steps,
                begin=self.begin,
                vocab_size=self.vocab_size,
                names=self.sources,
                measured=self.measured,
                side=self.side,
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
        unit = dp_world_size * local_batch_size
        if lanes < 1 or lanes % unit:
            raise UserError(
                f"must be a multiple of {unit} ({dp_world_size} data-parallel ranks x "
                f"{local_batch_size} sequences)",
                key="training.global_batch_size",
                value=lanes,
            )
        share = lanes // dp_world_size
        reading = config.reading(seq_len)
        sources = Sources(reading)
        self.sources = sources.names
        self._expected: tuple[tuple[str, ...], int] | None = None
        self.left_out = LeftOut()
        self.packed = Packed()
        encoder = (config.encoder or TextEncoder)(tokenizer)
        self._lanes = [
            Lane(lane, reading, sources, encoder)
            for lane in range(dp_rank * share, (dp_rank + 1) * share)
        ]
        self._global_batch_size = lanes
        self._local_batch_size = local_batch_size
        self.seq_len = seq_len
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
        self._handed_out = last % len(self._lanes)
        if self._handed_out == 0:
            self._states = self._step.states
        inputs_BL, labels_BL, positions_BL = (tensor[first:last] for tensor in self._step.tensors)
        return {"input": inputs_BL, "positions": positions_BL}, labels_BL

    def _read(self) -> _Step:
        """Read the next step of all lanes; called in the thread that reads ahead."""
        shape = (3, len(self._lanes), self.seq_len)
        tensors = torch.empty(shape, dtype=torch.int64)
        inputs, labels, positions = tensors.numpy()
        left_out, packed, digest = LeftOut(), Packed(), 0
        for number, lane in enumerate(self._lanes):
            lane.read(Row(inputs[number], labels[number], positions[number]))
            left_out.add(lane.left_out())
            packed.add(lane.packed())
            digest += _digest(lane.number, inputs[number], labels[number])
        samples = {lane.number: lane.spans for lane in self._lanes}
        return _Step(tensors, self._current(), samples, left_out, packed, _signed(digest))

    def _current(self) -> dict[str, State]:
        return {f"lane.{lane.number}": lane.state for lane in self._lanes}

    def samples(self) -> dict[int, list[Span]]:
        """Return, for each lane of this rank, the parts of documents in the last step."""
        return dict(self._step.samples) if self._step is not None else {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of each lane of this rank, in separate tensors."""
        if self._expected is not None:
            size = state_size(self._expected[0])
            return {name: torch.zeros(size, dtype=torch.int64) for name in self._states}
        assert self._handed_out == 0, "the state is taken between two steps"
        return {name: torch.from_numpy(state.copy()) for name, state in self._states.items()}

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
            for lane in self._lanes:
                lane.begin(step)

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Resume from the states of a loader with as many lanes.

        Raises:
            UserError: the state is of another global batch size.
        """
        beyond = f"lane.{self._global_batch_size}"
        if beyond in state_dict or any(name not in state_dict for name in self._states):
            raise UserError(
                "the checkpoint was saved with another",
                valid="that one, or a new run.dir",
                key="training.global_batch_size",
                value=self._global_batch_size,
            )
        names, step = self._expected or (self.sources, 0)
        self._expected = None
        with self._moved():
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
    """

    tensors: torch.Tensor
    states: dict[str, State]
    samples: dict[int, list[Span]]
    left_out: LeftOut
    packed: Packed
    digest: int


def _digest(lane: int, inputs: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> int:
    """Return a digest of 64 bits of a lane's sequence."""
    found = hashlib.blake2b(lane.to_bytes(8, "little"), digest_size=8)
    for ids in (inputs, labels):
        found.update(ids.astype("<i4").tobytes())
    return int.from_bytes(found.digest(), "little")


def _signed(number: int) -> int:
    """Return ``number`` modulo 2**64 as a signed integer of 64 bits, as torch sums them."""
    return (number + 2**63) % 2**64 - 2**63
