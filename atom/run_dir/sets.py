"""Find the validation sets of a trained run, and check that they can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atom.data import validation
from atom.data.dealing import told
from atom.data.documents import stored
from atom.data.held_out import Side
from atom.data.ids import check_some
from atom.data.validation import Texts
from atom.errors import UserError
from atom.plugin import Dataset, DocumentSource, LaneSource
from atom.recipe.run import Run, read
from atom.recipe.validation_sets import HELD_OUT, check_name
from atom.registry.host import Host
from atom.registry.opening import Chosen
from atom.registry.renaming import renamed
from atom.registry.select import Selection, select
from atom.registry.trust import Trust
from atom.run_dir import inputs
from atom.run_dir.folder import RUN_FILE, check_run

OF_THE_TOKENS = (
    "the tokenizer that the tokens were made with, such as tokenizer=bytes; or, if the folder of "
    "the dataset has its files, tokenizer=hf tokenizer.path=FOLDER/tokenizer"
)


def of(run: Run, selection: Selection) -> dict[str, Texts]:
    """Return the validation sets of a run by name."""
    found = {name: _texts(chosen) for name, chosen in selection.validation().items()}
    if run.validation.fraction:
        dataset = selection[Dataset]
        side = Side(run.validation.fraction, held_out=True)
        found[HELD_OUT] = Texts(dataset.call("source"), dataset.key, side)
    return found


def _texts(chosen: Chosen[Dataset]) -> Texts:
    return Texts(chosen.call("source"), chosen.key)


def of_run(folder: Path, given: Mapping[str, Any]) -> tuple[Run, dict[str, Texts]]:
    """Return a run, and the sets to validate it on: ``given``, or those of its ``run.yaml``.

    Args:
        folder: the folder of the run, or of its export.
        given: name -> a dataset's name, or a mapping of it and its parameters.

    Raises:
        UserError: there is no run, or a set cannot be read.
    """
    check_run(folder, valid="the folder of a run, or its export")
    run = read(folder / RUN_FILE)
    selection = select(run, Host.load(Trust.of_run(run.plugins)), training=False)
    sets = selection.validation()
    if given:
        sets = {name: _opened(selection.opener, name, value) for name, value in given.items()}
    recorded = inputs.read(folder / inputs.FILE_NAME)
    digest = recorded.tokenizer.digest if recorded is not None else None
    size = run.resolved.vocab_size if run.resolved is not None else None
    for chosen in sets.values():
        check(chosen, digest, run.tokenizer.name, size)
    if given:
        return run, {name: _texts(chosen) for name, chosen in sets.items()}
    if not (found := of(run, selection)):
        raise UserError(f"{folder} has no validation sets", valid="--set NAME=DATASET")
    for texts in found.values():
        texts.source.check()
    return run, found


def _opened(opener: Any, name: str, value: Any) -> Chosen[Dataset]:
    try:
        key = f"validation.sets.{check_name(name)}"
    except ValueError as error:
        raise UserError(str(error), key="--set") from None
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict):
        raise UserError(
            "is no dataset", valid="a name, or {name: NAME, parameters}", key=key, value=value
        )
    rest = {str(k): v for k, v in section.items() if k != "name"}
    chosen: Chosen[Dataset] = opener.choose(Dataset, section.get("name"), rest, key)
    return chosen


def check(
    chosen: Chosen[Dataset], digest: str | None, tokenizer: str, vocab_size: int | None = None
) -> None:
    """Refuse a validation set that cannot be read, or has nothing to predict.

    Args:
        chosen: its dataset.
        digest: the digest of the run's tokenizer; None if it is not known.
        tokenizer: the name of that.
        vocab_size: number of its ids; None if it is not known.

    Raises:
        UserError: with the key of the set.
    """
    with renamed(Dataset.kind, chosen.key):
        if chosen.declaration.build is not None:
            raise UserError(
                "has a data loader of its own, and validation reads documents",
                valid="a dataset of documents",
                key="dataset.name",
                value=chosen.component.name,
            )
        source = chosen.call("source")
        source.check()
        if digest is not None:
            check_tokens(source, digest, tokenizer)
        if vocab_size is not None and (tokens := stored(source)) is not None:
            check_some(tokens, vocab_size)
        if not _has_text(source):
            raise UserError(
                "has no text to validate on", valid="a dataset with text", key="dataset"
            )


def check_held_out(chosen: Chosen[Dataset], source: LaneSource, fraction: float) -> None:
    """Refuse to hold out documents of a dataset if there are none, or if it has its own loader.

    Args:
        chosen: the dataset.
        source: its documents.
        fraction: the fraction to hold out.
    """
    if chosen.declaration.build is not None:
        problem = "the data loader of this dataset reads no documents that could be held out"
    elif not _has_text(source, Side(fraction, held_out=True)):
        problem = "holds out no document of this dataset with text"
    elif not _has_text(source, Side(fraction)):
        problem = "leaves no document of this dataset with text to train on"
    else:
        return
    raise UserError(
        problem, valid="another fraction, or 0", key="validation.fraction", value=fraction
    )


def _has_text(source: LaneSource, side: Side | None = None) -> bool:
    """Return whether a document has something to predict."""
    for document in source.lane(0, 1, seed=validation.SEED, epoch=0):
        text = document.text or (document.tokens is not None and len(document.tokens) > 1)
        if text and (side is None or side.has(document)):
            return True
    return False


def check_tokens(source: DocumentSource, digest: str, name: str) -> None:
    """Refuse a tokenizer other than that of the tokens that a dataset is stored as."""
    theirs: str | None = told(source, "tokenizer", None)
    if theirs is not None and theirs != digest:
        raise UserError(
            f"is another tokenizer (digest {digest[:12]}) than that of the dataset's tokens "
            f"({theirs[:12]})",
            valid=OF_THE_TOKENS,
            key="tokenizer.name",
            value=name,
        )
