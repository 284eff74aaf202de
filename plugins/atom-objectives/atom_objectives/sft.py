"""``sft``: tokenize conversations, and train on their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from atom.data.chat_template import ChatTemplate, Conversation, TemplateError
from atom.errors import UserError
from atom.plugin import Document, Example, ObjectiveContext
from atom_objectives import kept, templates, tool_calls
from atom_objectives.config import Sft
from atom_objectives.messages import Messages, is_text, messages_of
from atom_objectives.problems import BadRecordError

Spans = Sequence[tuple[int, int]]
"""Begin and end of pieces of a text, in characters."""


def encoder(config: Sft, context: ObjectiveContext) -> SftEncoder:
    """Return the encoder of a run.

    Raises:
        UserError: there is no usable template, or the tokenizer cannot tell where tokens are.
    """
    tokenizer = context.tokenizer
    if not callable(getattr(tokenizer, "encode_template", None)):
        raise UserError(
            "this tokenizer does not tell which characters its tokens are",
            valid="a tokenizer with the method encode_template, such as bytes, bpe or hf",
            key="tokenizer.name",
        )
    source = templates.of_run(config, templates.context_of(context.files))
    try:
        template = ChatTemplate(
            templates.of_files(context.files) if source is None else source,
            templates.special(context.files, tokenizer),
        )
    except TemplateError as error:
        raise UserError(str(error), key="objective.template", value=config.template) from None
    return SftEncoder(tokenizer, template, context.seq_len, last=config.train_on == "last_answer")


class SftEncoder:
    """An encoder of records with conversations, or with a ``prompt`` and ``completion`` of text.

    Tokens are those of the rendered conversation, special tokens included. The model is trained to
    predict the answers, each with the mark that ends it. A conversation longer than a sequence is
    cut after the last answer that fits.

    Args:
        tokenizer: the run's.
        template: the chat template.
        seq_len: training pairs of a sequence.
        last: train on the last answer only.
    """

    def __init__(
        self, tokenizer: Any, template: ChatTemplate, seq_len: int, *, last: bool = False
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        special = dict.fromkeys(tokenizer.special_texts(), "a special token")
        # Where it is no token, a message could still begin another turn by it.
        self._spelt = dict.fromkeys(template.turn_marks, "a mark of the template") | special
        self._most = seq_len + 1
        self._last = last

    def encode(self, document: Document) -> Example | None:
        """Return the tokens of a conversation; None if not one answer fits a sequence.

        Raises:
            UserError: the document holds no conversation that can be trained on.
        """
        record = document.record
        if record is None:
            what = "tokens" if document.tokens is not None else "text"
            raise UserError(
                f"{document.id} is {what}, and objective=sft reads records with messages",
                valid="JSON lines, Parquet, or another dataset of records",
                key="dataset",
            )
        try:
            if is_text(record):
                return self._completion(record)
            return self._conversation(messages_of(record))
        except (BadRecordError, TemplateError) as error:
            _refuse(document, error)

    def _conversation(self, found: Messages) -> Example | None:
        if self._last:
            found = replace(found, trained=frozenset({max(found.trained)}))
        self._check_contents(found)
        rendered = self._rendered(found)
        kept.check(rendered.text, found)
        if not rendered.answers:
            raise TemplateError("marks no answer")
        return self._example(rendered.text, rendered.answers)

    def _rendered(self, found: Messages) -> Conversation:
        def render(messages: Sequence[Mapping[str, Any]]) -> Conversation:
            return self._template.conversation(messages, tools=found.tools, only=found.trained)

        try:
            return render(found.messages)
        except TemplateError:
            if any(message.get("tool_calls") for message in found.messages):
                # DeepSeek's templates, for example, take arguments as JSON.
                with suppress(TemplateError):
                    return render(tool_calls.as_text(found.messages))
            raise

    def _completion(self, record: Mapping[str, Any]) -> Example | None:
        """Return text with its continuation, between BOS and EOS, which is trained on."""
        prompt, completion = record["prompt"], record.get("completion")
        if completion is not None and not isinstance(completion, str):
            raise BadRecordError("its prompt is text, and its completion is not")
        if not completion or not completion.strip():
            raise BadRecordError("its completion is empty")
        if dropped := [key for key in ("tools", "system") if record.get(key)]:
            raise BadRecordError(f"it has {dropped[0]}, and its prompt is text without a template")
        ids = self._tokenizer.encode(prompt + completion, add_bos=True, add_eos=True)
        plain, offsets = self._tokenizer.encode_template(prompt + completion, special=False)
        before = next((at for at in (0, 1) if ids[at : at + len(plain)] == plain), None)
        if before is None:
            raise BadRecordError("its tokens depend on BOS")
        trained = np.zeros(len(ids), dtype=np.bool_)
        inside = _inside(offsets, [(len(prompt), len(prompt) + len(completion))])
        trained[before : before + len(plain)] = inside
        trained[before + len(plain) :] = True
        if len(ids) > self._most:
            return None
        return Example(np.asarray(ids, dtype=np.int32), trained)

    def _example(self, text: str, answers: Spans) -> Example | None:
        ids, offsets = self._tokenizer.encode_template(text, special=True)
        trained = _inside(offsets, answers)
        tokens = np.asarray(ids, dtype=np.int32)
        if len(tokens) > self._most:
            end = _whole_answers(offsets, answers, self._most)
            if end is None:
                return None
            tokens, trained = tokens[:end], trained[:end]
        return Example(tokens, trained)

    def _check_contents(self, found: Messages) -> None:
        """Refuse a message that spells a special token, or what the template begins turns by."""
        parts = {f"message {number + 1}": each for number, each in enumerate(found.messages)}
        for place, part in (parts | {"a description of tools": found.tools or []}).items():
            texts = _texts(part)
            for token, what in self._spelt.items():
                if any(token in text for text in texts):
                    raise BadRecordError(f"{place} has the text {token!r}, {what}")


def _refuse(document: Document, error: ValueError) -> NoReturn:
    if isinstance(error, TemplateError):
        raise UserError(
            f"the template {error}, in {document.id}",
            valid="a template that marks all of each answer by {% generation %}"
            if "marks no answers" in str(error)
            else None,
            key="objective.template",
        ) from None
    raise UserError(
        f"{document.id} cannot be trained on: {error}",
        valid="records with messages that end with an answer",
        key="dataset",
    ) from None


def _inside(offsets: Spans, answers: Spans) -> npt.NDArray[np.bool_]:
    """Return for each token whether it begins in an answer."""
    begins = np.array([begin for begin, _ in offsets], dtype=np.int64)
    ends = np.array([end for _, end in offsets], dtype=np.int64)
    inside = np.zeros(len(begins), dtype=np.bool_)
    for begin, end in answers:
        inside |= (begins < end) & (ends > begin)
    return inside


def _whole_answers(offsets: Spans, answers: Spans, most: int) -> int | None:
    """Return the number of tokens up to the end of the last answer that ``most`` tokens hold."""
    ends = np.array([end for _, end in offsets], dtype=np.int64)
    found = [int(np.searchsorted(ends, end)) + 1 for _, end in answers]
    return max((count for count in found if count <= most), default=None)


def _texts(value: Any) -> list[str]:
    """Return all texts in a message."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []
