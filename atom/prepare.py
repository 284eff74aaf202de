"""What a run needs before torch: a dataset that can be read, and a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from atom.plugin import Document, DocumentSource, PreparedTokenizer, TokenizerContext
from atom.select import Selection


def cache() -> Path:
    """Return the folder for what outlives a run: ``ATOM_CACHE``, or the user's own cache."""
    if folder := os.environ.get("ATOM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atom"


def prepare(selection: Selection) -> PreparedTokenizer:
    """Check the dataset and prepare the tokenizer on it.

    Raises:
        UserError: there is nothing to read, or the tokenizer cannot be had.
    """
    source: DocumentSource = selection.dataset.code("source")(selection.dataset.config)

    def documents() -> Iterator[Document]:
        return source.lane(0, 1, seed=0, epoch=0)

    context = TokenizerContext(documents=documents, digest=source.check(), cache=cache())
    prepared: PreparedTokenizer = selection.tokenizer.code("prepare")(
        selection.tokenizer.config, context
    )
    return prepared
