"""Read a dataset as a run does: documents by lane, and batches through the loader of each rank."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from pydantic import BaseModel

from atom.data.documents import TextEncoder
from atom.plugin import Dataset, DatasetContext, Document, Example, LaneSource
from atom.registry.host import Component
from atom.registry.opening import Chosen
from atom.testing import isolated
from atom.testing.opened import described, opened

Key = tuple[str, str]
"""Identity of a document within an epoch: its id, and a hash of its text or tokens."""

Rows = list[bytes]
"""The sequences of a step, sorted, because the loader chooses which rank reads which."""

LANES = 8
"""Sequences of the global batch."""

SEQ_LEN = 50
"""In tokens; a document has 18, so that sequences begin and end within documents."""

STEPS = 100
"""Steps of the run, for the stages of a mixture."""


def source(component: Component, config: BaseModel | None) -> LaneSource:
    """Return a new source, as each rank creates its own."""
    made: LaneSource = opened(component, config).call("source")
    return made


def key(document: Document) -> Key:
    content = document.text.encode("utf-8", "surrogatepass")
    if document.tokens is not None:
        content = repr(document.tokens.tolist()).encode()
    digest = hashlib.sha256(content).hexdigest()
    return document.id, f"{digest[:16]} {document.starts:d}{document.ends:d}"


def lanes(source: LaneSource, count: int, *, seed: int = 0, epoch: int = 0) -> list[list[Key]]:
    """Return the documents of each of ``count`` lanes in one epoch."""
    return [
        [key(document) for document in source.lane(lane, count, seed=seed, epoch=epoch)]
        for lane in range(count)
    ]


# ---------------------------------------------------------------------------- batches


class Ranks:
    """The loaders of all data-parallel ranks of a run."""

    def __init__(
        self, component: Component, config: BaseModel | None, dp: int, *, seed: int = 0
    ) -> None:
        from atom.testing.partners.digests import Digests

        self._loaders = [
            _loader_config(component, config, seed).build(
                dp_world_size=dp,
                dp_rank=rank,
                tokenizer=Digests(),
                seq_len=SEQ_LEN,
                local_batch_size=1,
                snapshot_every_n_steps=None,
            )
            for rank in range(dp)
        ]
        self._batches = [iter(loader) for loader in self._loaders]
        self._calls = LANES // dp

    def steps(self, count: int) -> list[Rows]:
        """Return the training data of the next ``count`` steps, over all ranks."""
        return [sorted(self._step()) for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: the states of all ranks by key."""
        state: dict[str, Any] = {}
        for loader in self._loaders:
            state |= loader.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Load a checkpoint as torch does: each rank reads the keys of its own state dict.

        Raises:
            KeyError: the checkpoint lacks one of them.
        """
        for loader in self._loaders:
            loader.load_state_dict({key: state[key] for key in loader.state_dict()})
        self._batches = [iter(loader) for loader in self._loaders]

    def _step(self) -> Iterator[bytes]:
        import torch

        for batches in self._batches:
            for inputs, labels in islice(batches, self._calls):
                tensors = [*(inputs[name] for name in sorted(inputs)), labels]
                for parts in zip(*tensors, strict=True):
                    yield b"".join(part.contiguous().view(torch.uint8).numpy() for part in parts)


def _loader_config(component: Component, config: BaseModel | None, seed: int) -> Any:
    # As in atom.titan.trainer_config.
    chosen: Chosen[Dataset] = opened(component, config)
    if chosen.declaration.build is not None:
        context = DatasetContext(seed=seed, global_batch_size=LANES, opening=chosen.context())
        return chosen.call("build", context)
    from atom.titan.train.data import DocumentLoader

    return DocumentLoader.Config(
        source=chosen.call("source"),
        encoder=_AsText,
        seed=seed,
        global_batch_size=LANES,
        steps=STEPS,
    )


class _AsText(TextEncoder):
    """An encoder that reads records as their JSON."""

    def encode(self, document: Document) -> Example | None:
        return super().encode(replace(document, record=None))


# ---------------------------------------------------------------------------- other processes

_READING = """
from atom.testing import opened, reading

described, orders = argument
source = opened.again(*described).call("source")
torch = "torch" in sys.modules
digest = source.check()
lanes = [reading.lanes(source, count, seed=seed, epoch=epoch) for count, seed, epoch in orders]
answer([digest, lanes, torch])
"""


def start(
    component: Component, config: BaseModel | None, orders: Iterable[tuple[int, int, int]]
) -> subprocess.Popen[str]:
    """Read in another process with another hash seed, as rank 3 of 8.

    :func:`isolated.result` returns the digest, the lanes of each of ``orders`` (number of lanes,
    seed, epoch), and whether creating the source imported torch.
    """
    argument = [described(component, config), list(orders)]
    environment = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "PYTHONHASHSEED": "4711"}
    return isolated.start(_READING, argument, **environment)
