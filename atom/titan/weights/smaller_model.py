"""Find the model that initial weights belong to, if a run adds tokens to its vocabulary."""

from __future__ import annotations

from pathlib import Path

from atom.errors import UserError
from atom.plugin import ModelParts
from atom.recipe.run import Run
from atom.titan import saved_model
from atom.titan.checkpoint import new_rows

KEY = "tokenizer.added_tokens"


def of(
    run: Run, parts: ModelParts, folder: Path, before: int, *, hugging_face: bool
) -> tuple[Run, int]:
    """Return the run with the model of initial weights, and the rows of its vocabulary.

    Args:
        run: the run.
        parts: its model's.
        folder: the weights'.
        before: the number of the tokenizer's ids without added tokens.
        hugging_face: whether the folder is in Hugging Face's format.

    Raises:
        UserError: the weights have too few rows or too many, or the rows are not known.
    """
    state = saved_model.on_meta(parts.model).state_dict()
    here = next((len(state[name]) for name in new_rows.VOCABULARY if name in state), None)
    if here is None:
        raise UserError(
            "this architecture does not name its embeddings as torchtitan does, so that they "
            f"cannot grow; valid names: {', '.join(new_rows.VOCABULARY)}",
            key=KEY,
        )
    there = _rows(run, parts, folder, state, hugging_face=hugging_face)
    if there is None:
        raise UserError(
            f"the vocabulary of {folder} is not known: it has no weights of embeddings", key=KEY
        )
    if there < before:
        raise UserError(
            f"{folder} has embeddings of {there} ids, and the tokenizer {before} without "
            f"{KEY}; valid: the tokenizer of these weights",
            key="tokenizer",
        )
    if there > here:
        raise UserError(
            f"{folder} has embeddings of {there} ids",
            valid=str(there),
            key="architecture.vocab_size",
            value=here,
        )
    section = run.architecture.model_dump()
    if section.get("vocab_size") is not None:
        section["vocab_size"] = there
    changed = type(run.architecture).model_validate(section)
    return run.model_copy(update={"architecture": changed}), there


def _rows(
    run: Run, parts: ModelParts, folder: Path, state: dict, *, hugging_face: bool
) -> int | None:
    if not hugging_face:
        return new_rows.in_checkpoint(saved_model.Checkpoint(folder).tensors)
    adapter = saved_model.adapter(parts, run.architecture.name)
    try:
        return new_rows.in_hugging_face(folder, adapter, state)
    except ValueError as error:
        raise UserError(str(error), key="checkpoint.initial_load", value=str(folder)) from None
