"""What a run needs before torch: a dataset that can be read, and a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atom.host import Host
from atom.opening import Opener, cache
from atom.plugin import Contents, Document, PreparedTokenizer, TokenizerContext
from atom.select import Selection


@dataclass(frozen=True)
class Prepared:
    """A dataset that has been checked, and the tokenizer.

    ``opened`` are the packages of the datasets that the run's own has opened: ranks load them too.
    ``contents`` are the dataset's, None of one that does not say.
    """

    tokenizer: PreparedTokenizer
    opened: frozenset[str]
    contents: Contents | None


def prepare(selection: Selection, host: Host) -> Prepared:
    """Check the dataset and prepare the tokenizer on it.

    Raises:
        UserError: there is nothing to read, or the tokenizer cannot be had.
    """
    opener = Opener(host)
    source = opener.source(selection.dataset.component, selection.dataset.config)

    def documents() -> Iterator[Document]:
        return source.lane(0, 1, seed=0, epoch=0)

    digest = source.check()
    contents = getattr(source, "contents", None)
    context = TokenizerContext(documents=documents, digest=digest, cache=cache())
    prepared: PreparedTokenizer = selection.tokenizer.code("prepare")(
        selection.tokenizer.config, context
    )
    return Prepared(
        prepared, frozenset(opener.packages), contents() if callable(contents) else None
    )
