"""Prepare what a run needs before torch is imported: a readable dataset, and a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from atom.data.dealing import DealtSource, told
from atom.data.documents import not_stored, stored
from atom.data.held_out import Side
from atom.data.ids import check_some
from atom.errors import UserError
from atom.io import caches
from atom.io.chat_files import TEMPLATE
from atom.io.files import make_folder, write_text
from atom.plugin import (
    Contents,
    Dataset,
    Document,
    LaneSource,
    Objective,
    PreparedTokenizer,
    TemplateContext,
    Tokenizer,
    TokenizerContext,
)
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.registry.select import Selection, select
from atom.registry.trust import Trust
from atom.run_dir import inputs, sets
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.inputs import Inputs


@dataclass(frozen=True)
class Prepared:
    """A checked dataset, and the tokenizer.

    ``inputs`` are the digests of the two; ``opened`` are the packages of the components that were
    found or opened, which ranks load. ``contents`` are those of the dataset; None if it does not
    report them.
    """

    tokenizer: PreparedTokenizer
    inputs: Inputs
    opened: frozenset[str]
    contents: Contents | None


def data_changed(folder: Path, *, adopt: bool = False) -> str | None:
    """Return how the dataset of a run has changed since its folder was written, in words, or None.

    Call it in a child process: see :mod:`atom.io.process`.

    Args:
        folder: the run folder.
        adopt: record the current content of the dataset, for a run that has not begun.
    """
    before = inputs.read(folder / inputs.FILE_NAME)
    if before is None:
        return None
    run = read(folder / RUN_FILE)
    host = Host.load(Trust.of_run(run.plugins))
    chosen = select(run, host)[Dataset]
    source = chosen.call("source")
    try:
        now = inputs.content(source)
    except UserError:
        return None  # the ranks report unreadable data
    if now.digest == before.dataset.digest:
        return None
    if adopt:
        replace(before, dataset=now).write(folder / inputs.FILE_NAME)
    return f"the dataset has changed under the run ({now.difference(before.dataset)})"


def prepare(selection: Selection, run: Run | None = None) -> Prepared:
    """Check the dataset and prepare the tokenizer on it.

    Args:
        selection: the components.
        run: the run that reads the dataset; None if there is none.

    Raises:
        UserError: the dataset is empty or unreadable, or does not support a setting of ``data``; or
            the tokenizer is unavailable.
    """
    source = selection[Dataset].call("source")

    fraction = run.validation.fraction if run is not None else 0.0

    def documents() -> Iterator[Document]:
        # What is held out is not learnt by a tokenizer either.
        trained = Side(fraction)
        for document in source.lane(0, 1, seed=0, epoch=0):
            if not trained.has(document):
                continue
            if document.tokens is not None or document.record is not None:
                stored_tokens = document.record is None
                what = "stored as tokens" if stored_tokens else "of records"
                raise UserError(
                    f"is trained on text, and the dataset is {what}",
                    valid=sets.OF_THE_TOKENS if stored_tokens else "bytes or hf",
                    key="tokenizer.name",
                    value=name,
                )
            yield document

    name = selection[Tokenizer].component.name
    read = inputs.content(source)
    if run is not None:
        _check_settings(source, run)
    # A tokenizer is trained on the first documents.
    digest = told(source, "ordered", read.digest, read.digest)
    if fraction:
        digest = hashlib.sha256(f"{digest} without {fraction}".encode()).hexdigest()
        sets.check_held_out(selection[Dataset], source, fraction)
    context = TokenizerContext(documents=documents, digest=digest, cache=caches.folder())
    prepared: PreparedTokenizer = selection[Tokenizer].call("prepare", context)
    prepared = _with_template(prepared, selection)
    found = inputs.of(read, prepared)
    sets.check_tokens(source, found.tokenizer.digest, name)
    if (tokens := stored(source)) is not None:
        check_some(tokens, prepared.vocab_size)
    for chosen in selection.validation().values():
        sets.check(chosen, found.tokenizer.digest, name, prepared.vocab_size)
    contents: Contents | None = told(source, "contents", None)
    return Prepared(
        prepared,
        found,
        frozenset(selection.opener.packages),
        contents,
    )


def _with_template(prepared: PreparedTokenizer, selection: Selection) -> PreparedTokenizer:
    """Return the tokenizer with the chat template of the run's objective, if it has one."""
    objective = selection.optional(Objective)
    if objective is None or objective.declaration.template is None:
        return prepared
    template: str | None = objective.call("template", TemplateContext(files=prepared.files))
    if template is None:
        return prepared
    digest = hashlib.sha256(template.encode()).hexdigest()
    path = caches.folder() / "chat_templates" / f"{digest}.jinja"
    make_folder(path.parent)
    write_text(path, template)
    return replace(prepared, files={**prepared.files, TEMPLATE: path})


def _check_settings(source: LaneSource, run: Run) -> None:
    """Refuse settings that a dataset does not support, or that have no effect on it."""
    if callable(getattr(source, "mixture", None)):
        return  # its sources are looked at one by one
    if run.data.packing == "windows" and stored(source) is None:
        raise not_stored("dataset")
    if run.given("data.order") and not isinstance(source, DealtSource):
        raise UserError(
            "has no effect: this dataset cannot be read in any order",
            key="data.order",
            value=run.data.order,
        )
