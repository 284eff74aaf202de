"""Read pairs of preferences: records with a ``chosen`` and a ``rejected`` answer to a prompt.

Shapes, as trl's: ``prompt``, ``chosen`` and ``rejected``, all texts or all lists of messages; or
``chosen`` and ``rejected`` as whole conversations, of which the prompt is what both begin with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from atom.errors import UserError
from atom.plugin import Document, Example, ObjectiveContext
from atom_objectives import sft
from atom_objectives.config import Dpo, Sft

ANSWERS = ("chosen", "rejected")

_WHOLE = 1 << 40
"""Training pairs of a sequence that cuts nothing."""


def encoder(config: Dpo, context: ObjectiveContext) -> PreferenceEncoder:
    """Return the encoder of a run.

    Raises:
        UserError: there is no usable template, or the tokenizer cannot tell where tokens are.
    """
    conversations = sft.encoder(Sft(template=config.template), replace(context, seq_len=_WHOLE))
    return PreferenceEncoder(conversations, context.seq_len)


class PreferenceEncoder:
    """An encoder of a pair as an example of two sequences: the chosen, and the rejected answer.

    Each is the prompt with the answer, as ``objective=sft`` makes it of a prompt and a completion.
    A pair is never cut.

    Args:
        conversations: makes tokens of a prompt and a completion, whatever their length.
        seq_len: training pairs of a sequence, which both sequences share.
    """

    def __init__(self, conversations: sft.SftEncoder, seq_len: int) -> None:
        self._conversations = conversations
        self._most = seq_len + 1

    def encode(self, document: Document) -> Example | None:
        """Return the tokens of a pair; None if it does not fit a sequence.

        Raises:
            UserError: the document holds no pair that can be trained on.
        """
        record = document.record
        if record is None:
            what = "tokens" if document.tokens is not None else "text"
            raise UserError(
                f"{document.id} is {what}, and objective=dpo reads records with chosen and "
                "rejected answers",
                valid="JSON lines, Parquet, or another dataset of records",
                key="dataset",
            )
        chosen, rejected = (
            self._answer(document, name, completed)
            for name, completed in _completed(document, record).items()
        )
        if np.array_equal(chosen.tokens, rejected.tokens):
            raise _refusal(document, "its chosen and its rejected answer are the same")
        tokens = np.concatenate([chosen.tokens, rejected.tokens])
        if len(tokens) > self._most:
            return None
        assert chosen.trained is not None
        assert rejected.trained is not None
        trained = np.concatenate([chosen.trained, rejected.trained])
        return Example(tokens, trained, begins=(len(chosen.tokens),))

    def _answer(self, document: Document, name: str, completed: dict[str, Any]) -> Example:
        try:
            example = self._conversations.encode(replace(document, record=completed))
        except UserError as error:
            # The encoder knows an answer as a completion.
            raise UserError(
                error.problem.replace("completion", name),
                valid="records with a prompt, a chosen and a rejected answer"
                if error.key == "dataset"
                else error.valid,
                key=error.key,
                value=error.value,
            ) from None
        assert example is not None  # nothing is too long
        return example


def _completed(document: Document, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each answer as a record with a prompt and a completion."""
    for name in ANSWERS:
        if record.get(name) is None:
            fields = ", ".join(list(record)[:9]) or "none"
            raise _refusal(document, f"it has no {name} answer (its fields: {fields[:200]})")
        if not record[name]:
            raise _refusal(document, f"its {name} answer is empty")
    prompt = record.get("prompt")
    chosen, rejected = (record[name] for name in ANSWERS)
    kinds = {type(chosen), type(rejected)}
    if len(kinds) > 1 or not kinds <= {str, list}:
        raise _refusal(
            document, "its chosen and its rejected answer are neither texts nor messages"
        )
    if isinstance(chosen, list) and not isinstance(prompt, list):
        prompt, chosen, rejected = _split(document, prompt, chosen, rejected)
    elif type(prompt) is not type(chosen):
        raise _refusal(document, f"it has no prompt that is {_KINDS[type(chosen)]}, as its answers")
    rest = {
        key: value
        for key, value in record.items()
        if key not in (*ANSWERS, "prompt", "completion", "messages", "conversations")
    }
    return {
        name: rest | {"prompt": prompt, "completion": answer}
        for name, answer in zip(ANSWERS, (chosen, rejected), strict=True)
    }


_KINDS: dict[type, str] = {str: "text", list: "a list of messages"}


def _split(
    document: Document, prompt: object, chosen: list[Any], rejected: list[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the messages that two conversations begin with, and the rest of each."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    if chosen == rejected:
        raise _refusal(document, "its chosen and its rejected answer are the same")
    if count == 0:
        raise _refusal(
            document, "its chosen and its rejected conversation begin with different messages"
        )
    if min(len(chosen), len(rejected)) == count:
        raise _refusal(document, "one of its conversations is the beginning of the other")
    if prompt is not None and prompt not in _contents(chosen[:count]):
        raise _refusal(document, "its prompt is no message that its conversations begin with")
    return chosen[:count], chosen[count:], rejected[count:]


def _contents(messages: list[Any]) -> list[Any]:
    found = (each for each in messages if isinstance(each, dict))
    return [each.get("content", each.get("value")) for each in found]


def _refusal(document: Document, problem: str) -> UserError:
    return UserError(
        f"{document.id} cannot be trained on: {problem}",
        valid="records with a prompt, a chosen and a rejected answer",
        key="dataset",
    )
