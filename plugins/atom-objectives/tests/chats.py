"""Conversations, and a tokenizer of a few hundred tokens, for the tests of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from atom.data.chat_template import ChatTemplate
from atom.plugin import Document
from atom_objectives import templates
from atom_objectives.sft import SftEncoder
from atom_tokenizers.ranks import PlainTextTokenizer

CONVERSATIONS = [
    [("user", "What is 2+2?"), ("assistant", "4.")],
    [("system", "Be brief."), ("user", "Häagen-Dazs? 🍨"), ("assistant", "Ice cream: 🍦 é.")],
    [
        *[("user", "  Leading space\n"), ("assistant", "one\n\ntwo  ")],
        *[("user", "Sure?"), ("assistant", "Yes."), ("user", "Thanks"), ("assistant", "Bye 👋🏽")],
    ],
    [("user", "?"), ("assistant", "a" * 300)],
]
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "xyzzy"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Finds a word.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string", "description": "The word."}},
                "required": ["word"],
            },
        },
    }
]
CALLING = [
    {"role": "user", "content": "Find it."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "look_up", "content": "It is a spell."},
    {"role": "assistant", "content": "A spell."},
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<turn|>", "<|end|>"]


def messages(conversation: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in conversation]


def made(folder: Path) -> None:
    """Write a tokenizer with the special tokens of the templates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [content for each in CONVERSATIONS for _, content in each]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts * 5, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


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
