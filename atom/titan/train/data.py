"""Load tokenized and packed documents in an order that is independent of the layout.

A global batch of G sequences is G *lanes*. Lane i reads its own documents of the source and packs
them into sequence i of every step, whatever the number of ranks; data-parallel rank r of D owns
lanes r·G/D to (r+1)·G/D - 1. A lane's state between two steps is three integers.

Shape suffixes: B = sequences per call, L = tokens per sequence, N = tokens of a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer

from atom.errors import UserError
from atom.plugin import Document, LaneSource

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

Span = tuple[int, str, int, int]
"""A part of a document: epoch, document id, first training pair, number of pairs."""


class DocumentLoader(BaseDataLoader):
    """A data loader that yields ``({"input":

    [B, L], "positions": [B, L]}, labels [B, L])`` forever.

    All tensors are int64. A step of G sequences takes G / (D * B) calls on each of D ranks; they
    return the rank's lanes in order, B at a time, and then start over.

    The state is ``{"lane.I": [epoch, document, pairs]}`` of the rank's own lanes: the lane's epoch,
    the index of the current document, and how many of that document's training pairs are consumed.
    Keys name lanes, not ranks, so a checkpoint can be loaded on any number of ranks.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        source: LaneSource
        seed: int
        global_batch_size: int
        """In sequences."""

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
        self.left_out = LeftOut()
        """Documents without anything to train on."""
        self._lanes = [
            _Lane(lane, config, tokenizer, self.left_out)
            for lane in range(dp_rank * share, (dp_rank + 1) * share)
        ]
        self._global_batch_size = lanes
        self._local_batch_size = local_batch_size
        self._seq_len = seq_len
        self._handed_out = 0
        """Lanes of the current step already returned."""
        self._samples: dict[int, list[Span]] = {}

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch()

    def _batch(self) -> Batch:
        shape = (self._local_batch_size, self._seq_len)
        inputs_BL, labels_BL, positions_BL = (
            torch.empty(shape, dtype=torch.int64) for _ in range(3)
        )
        first = self._handed_out
        for row, lane in enumerate(self._lanes[first : first + self._local_batch_size]):
            lane.read(inputs_BL[row], labels_BL[row], positions_BL[row])
        if first == 0:
            self._samples = {}
        for lane in self._lanes[first : first + self._local_batch_size]:
            self._samples[lane.number] = lane.read_last
        self._handed_out = (first + self._local_batch_size) % len(self._lanes)
        return {"input": inputs_BL, "positions": positions_BL}, labels_BL

    def samples(self) -> dict[int, list[Span]]:
        """Return, for each lane of this rank, the parts of documents in the last step."""
        return dict(self._samples)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the position of each lane of this rank, in separate tensors."""
        # Within a step lanes are at different positions, which three integers per lane cannot
        # express.
        assert self._handed_out == 0, "the state is taken between two steps"
        return {lane.name: torch.tensor(lane.position) for lane in self._lanes}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Resume from the positions of a loader with as many lanes.

        Raises:
            UserError: the state is of another global batch size.
        """
        beyond = f"lane.{self._global_batch_size}"
        if beyond in state_dict or any(lane.name not in state_dict for lane in self._lanes):
            raise UserError(
                "the checkpoint was saved with another",
                valid="that one, or a new run.dir",
                key="training.global_batch_size",
                value=self._global_batch_size,
            )
        for lane in self._lanes:
            epoch, document, pairs = state_dict[lane.name].tolist()
            lane.go_to(epoch, document, pairs)
        self._handed_out = 0


@dataclass
class LeftOut:
    """Counts of documents that this process has read and skipped.

    Attributes:
        empty: number of documents without text.
        short: number of documents of one token, which has no next token to predict.
        bad: unreadable documents with their problem, until they are recorded.
    """

    empty: int = 0
    short: int = 0
    bad: list[Document] = field(default_factory=list)

    def add(self, document: Document) -> None:
        """Count a document."""
        if document.problem is None:
            self.empty += 1
        else:
            self.bad.append(document)


class _Lane:
    """A lane: it packs its documents, one after another, into sequences of training pairs.

    A training pair is a token and its successor in the same document, so a document of N tokens has
    N - 1 pairs and the last token is only a target. A part of a long document is packed like a
    document: it has BOS only if it is the first part and EOS only if it is the last. The pair
    across two parts is left out, as the next part may belong to another lane.

    Documents without text, or of less than two tokens, are skipped and counted.
    """

    def __init__(
        self,
        number: int,
        config: DocumentLoader.Config,
        tokenizer: BaseTokenizer,
        left_out: LeftOut,
    ) -> None:
        self.name = f"lane.{number}"
        self.number = number
        self._config = config
        self._tokenizer = tokenizer
        self._left_out = left_out
        self.read_last: list[Span] = []
        """The parts of documents in the last sequence."""
        self.go_to(0, 0, 0)

    @property
    def position(self) -> tuple[int, int, int]:
        """The epoch, the index of the current document, and how many of its pairs are read."""
        return self._epoch, self._document, self._pairs

    def go_to(self, epoch: int, document: int, pairs: int) -> None:
        """Go to a :attr:`position`; documents are opened at the next :meth:`read`."""
        self._epoch, self._document, self._pairs = epoch, document, pairs
        self._documents: Iterator[tuple[int, Document]] | None = None
        self._tokens_N = torch.empty(0, dtype=torch.int64)
        self._id = ""

    def read(
        self, inputs_L: torch.Tensor, labels_L: torch.Tensor, positions_L: torch.Tensor
    ) -> None:
        """Write the next sequence.

        Positions count from 0 at its start and at each document's start.

        Raises:
            UserError: the source is empty.
        """
        if self._documents is None:
            self._open()
        seq_len, filled = len(inputs_L), 0
        self.read_last = []
        while filled < seq_len:
            left = len(self._tokens_N) - 1 - self._pairs
            if left <= 0:
                self._next_document()
                continue
            count = min(left, seq_len - filled)
            begin, end, here = self._pairs, self._pairs + count, slice(filled, filled + count)
            inputs_L[here] = self._tokens_N[begin:end]
            labels_L[here] = self._tokens_N[begin + 1 : end + 1]
            torch.arange(count, out=positions_L[here])
            self.read_last.append((self._epoch, self._id, begin, count))
            self._pairs = end
            filled += count

    def _open(self) -> None:
        self._documents = self._pass(self._document)
        if self._pairs == 0:  # the lane has read nothing so far
            return
        _, document = next(self._documents, (0, None))
        if document is not None:
            self._tokens_N, self._id = self._encoded(document), document.id
        if self._pairs >= len(self._tokens_N):
            raise UserError(
                "the dataset or the tokenizer is not what it was when the checkpoint was saved: "
                f"document {self._document} of sequence {self.number} has become shorter",
                key="dataset",
            )

    def _next_document(self) -> None:
        assert self._documents is not None
        for _ in range(3):  # the rest of this epoch, and two whole ones
            for index, document in self._documents:
                self._document, self._pairs = index, 0
                self._tokens_N, self._id = self._encoded(document), document.id
                if len(self._tokens_N) >= 2:
                    return
                self._left_out.short += bool(document.text)
            self._epoch += 1
            self._documents = self._pass(0)
        raise UserError(
            f"two passes over the documents of sequence {self.number} of the global batch gave "
            "nothing to train on",
            valid=f"a dataset with text for all {self._config.global_batch_size} sequences",
            key="dataset",
        )

    def _pass(self, start: int) -> Iterator[tuple[int, Document]]:
        config = self._config
        return enumerate(
            config.source.lane(
                self.number,
                config.global_batch_size,
                seed=config.seed,
                epoch=self._epoch,
                start=start,
            ),
            start,
        )

    def _encoded(self, document: Document) -> torch.Tensor:
        if not document.text:  # BOS and EOS alone would train the model to end texts at once
            self._left_out.add(document)
            return torch.empty(0, dtype=torch.int64)
        ids = self._tokenizer.encode(document.text, add_bos=document.starts, add_eos=document.ends)
        return torch.tensor(ids, dtype=torch.int64)
