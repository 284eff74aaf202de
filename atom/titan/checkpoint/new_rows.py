"""Grow the embedding and the output layer of initial weights for added tokens.

A row is new if it belongs to a token that the run adds to its tokenizer, or if the weights have no
such row. New rows are the mean of the rows of the tokenizer's other ids, as in
``transformers.PreTrainedModel.resize_token_embeddings`` without its noise. Each rank reads a
matrix whole, so that all layouts compute the same mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.shards import part_of

VOCABULARY = ("tok_embeddings.weight", "lm_head.weight")
"""Names of the weights with a row for each id, as torchtitan's decoders have them."""


def in_checkpoint(tensors: Mapping[str, Any]) -> int | None:
    """Return the rows of the vocabulary by the entries of a checkpoint; None if it has none."""
    return next((tensors[name].size[0] for name in VOCABULARY if name in tensors), None)


def in_hugging_face(folder: Path, adapter: Any, state: Mapping[str, Any]) -> int | None:
    """Return the rows of the vocabulary in a folder in Hugging Face's format.

    Args:
        folder: the folder.
        adapter: the architecture's state-dict adapter.
        state: the model's state dict, or a rank's part of it.

    Returns:
        None if the folder or the state has none.
    """
    found = hf_folder.tensors(folder)
    ours = {name: state[name] for name in VOCABULARY if name in state}
    shapes = (found[theirs].shape for theirs in adapter.to_hf(ours) if theirs in found)
    return next((shape[0] for shape in shapes), None)


@dataclass(frozen=True)
class Added:
    """The tokens that a run adds.

    Attributes:
        first: the number of ids without them, and the id of the first.
        ids: the number of ids with them.
    """

    first: int
    ids: int


class Growing:
    """Weights of a vocabulary while they are read, with as many rows as are stored.

    Args:
        state: a model's state dict, or this rank's part of it, to read. Its weights of the
            vocabulary become tensors of the stored size; :meth:`end` returns those of the model.
        added: the added tokens.
        rows: the number of rows that are stored.
    """

    def __init__(self, state: dict[str, Any], added: Added, rows: int) -> None:
        self._added = added
        self._weights = {name: state[name] for name in VOCABULARY if name in state}
        for name, weight in self._weights.items():
            state[name] = torch.empty((rows, *weight.shape[1:]), dtype=weight.dtype)

    def end(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``loaded`` with weights of the model's size."""
        done = dict(loaded)
        for name, weight in self._weights.items():
            if name in loaded:
                _fill(weight, grown(loaded[name], self._added, len(weight)))
                done[name] = weight
        return done


def grown(stored: torch.Tensor, added: Added, rows: int) -> torch.Tensor:
    """Return a stored weight with ``rows`` rows, of which the new ones are the mean."""
    whole = stored.new_empty((rows, *stored.shape[1:]))
    whole[: len(stored)] = stored
    mean = stored[: added.first].to(torch.float64).mean(0).to(stored.dtype)
    whole[added.first : added.ids] = mean
    whole[len(stored) :] = mean
    return whole


@torch.no_grad()
def _fill(weight: torch.Tensor, whole: torch.Tensor) -> None:
    if isinstance(weight, DTensor):
        weight.to_local().copy_(part_of(whole, weight))
    else:
        weight.copy_(whole)
