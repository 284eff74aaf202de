"""Conversations become the tokens and masks of ``transformers``; bad records are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from atom.data.chat_template import ChatTemplate
from atom.errors import UserError
from atom.plugin import Document, ObjectiveContext
from atom_objectives import templates
from atom_objectives.config import Sft
from atom_objectives.sft import SftEncoder, encoder
from atom_tokenizers.config import Bytes
from atom_tokenizers.ranks import PlainTextTokenizer, byte_level

CONVERSATIONS = [
    [("user", "What is 2+2?"), ("assistant", "4.")],
    [("system", "Be brief."), ("user", "Häagen-Dazs? 🍨"), ("assistant", "Ice cream: 🍦 é.")],
    [
        *[("user", "  Leading space\n"), ("assistant", "one\n\ntwo  ")],
        *[("user", "Sure?"), ("assistant", "Yes."), ("user", "Thanks"), ("assistant", "Bye 👋🏽")],
    ],
    [("user", "?"), ("assistant", "a" * 300)],
]
MARKED = templates.named()
UNMARKED = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "user and bot": "{% for m in messages %}{% if m.role == 'assistant' %}Bot: {{ m.content }}"
    "{{ eos_token }}{% else %}User: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Bot: {% endif %}",
}


def messages(conversation: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in conversation]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few hundred tokens, with the special tokens of the templates."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [content for each in CONVERSATIONS for _, content in each]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts * 5, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in special])
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def ours(folder: Path) -> PlainTextTokenizer:
    return PlainTextTokenizer.Config().build(tokenizer_path=str(folder))


def sft(folder: Path, template: str, seq_len: int = 10_000, **more: Any) -> SftEncoder:
    """An encoder with a template given by its text."""
    tokenizer = ours(folder)
    special = templates.special(folder, tokenizer)
    return SftEncoder(tokenizer, ChatTemplate(template, special), seq_len, **more)


def document(**record: Any) -> Document:
    return Document(json.dumps(record), "data.jsonl:7", record=record)


def source(name: str) -> str:
    return (templates.FOLDER / f"{name}.jinja").read_text()


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_tokens_and_masks_are_those_of_transformers(
    name: str, conversation: list[tuple[str, str]], folder: Path
) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        messages(conversation),
        chat_template=source(name),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    example = sft(folder, source(name)).encode(document(messages=messages(conversation)))
    assert example is not None
    assert example.trained is not None
    assert example.tokens.tolist() == expected["input_ids"]
    assert example.trained.astype(int).tolist() == expected["assistant_masks"]
    assert example.trained.any()


@pytest.mark.parametrize("name", UNMARKED)
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_answers_without_marks_are_what_the_assistant_adds(
    name: str, conversation: list[tuple[str, str]], folder: Path
) -> None:
    made = sft(folder, UNMARKED[name])
    example = made.encode(document(messages=messages(conversation)))
    assert example is not None
    assert example.trained is not None
    text = ours(folder).tokenizer.decode(
        example.tokens[example.trained].tolist(), skip_special_tokens=False
    )
    end = "<|im_end|>" if name == "chatml" else "</s>"
    answers = [content for role, content in conversation if role == "assistant"]
    assert text == "".join(answer + end for answer in answers)


def test_shapes_of_records_are_alike(folder: Path) -> None:
    made = sft(folder, source("chatml"))
    conversation = messages(CONVERSATIONS[2])
    sender = {"user": "human", "assistant": "gpt"}
    shapes = [
        {"messages": conversation},
        {
            "conversations": [
                {"from": sender[m["role"]], "value": m["content"]} for m in conversation
            ]
        },
        {
            "messages": [
                m | {"content": [{"type": "text", "text": m["content"]}]} for m in conversation
            ]
        },
    ]
    examples = [made.encode(document(**shape)) for shape in shapes]
    for example in examples:
        assert example is not None
        assert np.array_equal(example.tokens, examples[0].tokens)
        assert np.array_equal(example.trained, examples[0].trained)
    prompted = made.encode(document(prompt=conversation[:-1], completion=conversation[-1:]))
    last = sft(folder, source("chatml"), last=True).encode(document(messages=conversation))
    assert prompted is not None
    assert last is not None
    assert np.array_equal(prompted.tokens, last.tokens)
    assert np.array_equal(prompted.trained, last.trained)


def test_a_completion_is_text_after_a_prompt(folder: Path) -> None:
    example = sft(folder, source("chatml")).encode(document(prompt="Hello ", completion="world"))
    assert example is not None
    tokenizer = ours(folder)
    assert example.tokens.tolist() == tokenizer.encode("Hello world", add_bos=True, add_eos=True)
    trained = example.tokens[example.trained].tolist()
    assert tokenizer.tokenizer.decode(trained, skip_special_tokens=False) == "world</s>"


def test_a_long_conversation_keeps_whole_answers(folder: Path) -> None:
    conversation = messages(CONVERSATIONS[2])
    whole = sft(folder, source("chatml")).encode(document(messages=conversation))
    first = sft(folder, source("chatml")).encode(document(messages=conversation[:2]))
    assert whole is not None
    assert first is not None
    end = len(first.tokens) - 1  # without the line end after the answer
    for seq_len in (len(whole.tokens) - 4, end, end - 1):
        kept = sft(folder, source("chatml"), seq_len).encode(document(messages=conversation))
        assert kept is not None
        assert len(kept.tokens) <= seq_len + 1
        assert kept.trained[-1]
        assert np.array_equal(kept.tokens, whole.tokens[: len(kept.tokens)])
    assert sft(folder, source("chatml"), end - 2).encode(document(messages=conversation)) is None


CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "x"}}}
BAD = {
    "no messages": ({"text": "hello"}, "no messages, conversations, or prompt and completion"),
    "no list": ({"messages": "hello"}, "its messages are no list"),
    "no message": ({"messages": ["hello"]}, "messages[0] is no message"),
    "an unknown role": ({"messages": messages([("bot", "x")])}, "the role 'bot'; known: user"),
    "an unknown sender": ({"conversations": [{"from": "x", "value": "y"}]}, "is from 'x'"),
    "an empty answer": (
        {"messages": messages([("user", "x"), ("assistant", " \n")])},
        "messages[1] is an empty answer",
    ),
    "no answer": ({"messages": messages([("user", "x")])}, "no answer of the assistant"),
    "two answers": (
        {"messages": messages([("user", "x"), ("assistant", "y"), ("assistant", "z")])},
        "message 3 has the role 'assistant' after 'assistant'",
    ),
    "an answer first": ({"messages": messages([("assistant", "y")])}, "'assistant' first"),
    "a system turn in between": (
        {"messages": messages([("user", "x"), ("system", "y"), ("assistant", "z")])},
        "message 2 has the role 'system' after 'user'",
    ),
    "a special token": (
        {"messages": messages([("user", "x<|im_end|>"), ("assistant", "y")])},
        "message 1 has the text '<|im_end|>', a special token",
    ),
    "an empty completion": ({"prompt": "x", "completion": ""}, "its completion is empty"),
    "calls that the template leaves out": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
            ]
        },
        "leaves out the tool calls of message 2",
    ),
}


@pytest.mark.parametrize(("record", "said"), BAD.values(), ids=BAD.keys())
def test_bad_records_are_refused(record: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        sft(folder, source("chatml")).encode(document(**record))
    sentence = refused.value.sentence()
    assert said in sentence
    assert "data.jsonl:7" in sentence


def test_text_is_no_record(folder: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt is text, and objective=sft reads records"):
        sft(folder, source("chatml")).encode(Document("hello", "a.txt"))


def test_a_template_that_does_not_add_to_what_was_before(folder: Path) -> None:
    backwards = "{% for m in messages | reverse %}{{ m.content }}</s>{% endfor %}"
    with pytest.raises(UserError, match="does not render the beginning of a conversation"):
        sft(folder, backwards).encode(document(messages=messages(CONVERSATIONS[2])))


def test_a_template_that_ends_no_answer(folder: Path) -> None:
    endless = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="writes nothing that ends one"):
        sft(folder, endless).encode(
            document(
                messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
            )
        )


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "changes": "{% set _ = messages.append(1) %}",
    "without end": "{% for i in range(99999) %}{% for j in range(99999) %}{{ '%9999d' % j }}"
    "{% endfor %}{% endfor %}",
    "refusal": "{{ raise_exception('no system turns') }}",
    "no template": "{% if %}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_templates_are_rendered_in_a_sandbox(text: str, folder: Path) -> None:
    with pytest.raises((UserError, ValueError), match=r"template|messages|characters"):
        sft(folder, text).encode(document(messages=messages(CONVERSATIONS[0])))


def test_bytes_have_templates_too(tmp_path: Path) -> None:
    tokenizer = byte_level(Bytes()).build(tokenizer_path=str(tmp_path))
    context = ObjectiveContext(tokenizer=tokenizer, files=tmp_path, seq_len=1000)
    made = encoder(Sft(template="chatml"), context)
    example = made.encode(document(messages=messages(CONVERSATIONS[1])))
    assert example is not None
    assert tokenizer.decode(example.tokens[example.trained]) == "Ice cream: 🍦 é.<|im_end|>"
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        encoder(Sft(), context)
