"""``sft``: tokenize conversations, and train on their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from atom.data.chat_template import ChatTemplate, Conversation, TemplateError
from atom.errors import UserError
from atom.plugin import Document, Example, ObjectiveContext
from atom_objectives import templates
from atom_objectives.config import Sft
from atom_objectives.messages import BadRecordError, Messages, messages_of

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
        self._spelt = tokenizer.special_texts()
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
            if isinstance(record.get("prompt"), str):
                return self._completion(record)
            return self._conversation(messages_of(record))
        except (BadRecordError, TemplateError) as error:
            _refuse(document, error)

    def _conversation(self, found: Messages) -> Example | None:
        self._check_contents(found.messages)
        rendered = self._template.conversation(found.messages, tools=found.tools)
        _check_calls(rendered, found.messages)
        answers = list(rendered.answers)
        if found.first:
            prompt = self._template.render(
                found.messages[: found.first], tools=found.tools, add_generation_prompt=True
            )
            if not rendered.text.startswith(prompt):
                raise TemplateError("does not render a prompt as it renders the whole")
            answers = [span for span in answers if span[0] >= len(prompt)]
        if not answers:
            raise BadRecordError("the template marks no answer in it")
        return self._example(rendered.text, answers[-1:] if self._last else answers)

    def _completion(self, record: Mapping[str, Any]) -> Example | None:
        """Return text with its continuation, between BOS and EOS, which is trained on."""
        prompt, completion = record["prompt"], record.get("completion")
        if not isinstance(completion, str) or not completion.strip():
            raise BadRecordError("its completion is empty")
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

    def _check_contents(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a message that spells a special token: the template would make it one."""
        for number, message in enumerate(messages):
            for text in _texts(message):
                if (
                    found := next((each for each in self._spelt if each in text), None)
                ) is not None:
                    raise BadRecordError(
                        f"message {number + 1} has the text {found!r}, a special token"
                    )


def _refuse(document: Document, error: ValueError) -> NoReturn:
    if isinstance(error, TemplateError):
        raise UserError(
            f"the template {error}, in {document.id}", key="objective.template"
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


def _check_calls(rendered: Conversation, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a template that leaves tool calls out."""
    for number, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            name = function.get("name") if isinstance(function, dict) else None
            if not isinstance(name, str) or name not in rendered.text:
                raise TemplateError(f"leaves out the tool calls of message {number + 1}")
