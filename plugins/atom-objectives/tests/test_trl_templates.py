"""Masks equal those of trl, for the templates of model families that its package carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import CALLING, CONVERSATIONS, TOOLS, document, messages, sft, source
from transformers import PreTrainedTokenizerFast

from atom.errors import UserError

_TRL = find_spec("trl")
assert _TRL is not None
FOLDER = Path(next(iter(_TRL.submodule_search_locations or ()))) / "chat_templates"

PLAIN = [messages(CONVERSATIONS[0]), messages(CONVERSATIONS[2])]
SYSTEM = [messages(CONVERSATIONS[1])]
TURN = PLAIN[:1]
ALIKE = {
    "cohere": PLAIN + SYSTEM,
    "cohere2": PLAIN + SYSTEM,
    "diffusion_gemma": PLAIN + SYSTEM,
    "gemma": PLAIN,
    "gemma3": PLAIN + SYSTEM,
    "lfm2": PLAIN + SYSTEM,
    "lfm2_v2": [*PLAIN, *SYSTEM, CALLING],
    "llama3": PLAIN + SYSTEM,
    "phi3": TURN + SYSTEM,
    "phi3_5": TURN + SYSTEM,
    "qwen2_5_vl": PLAIN + SYSTEM,
    "qwen3": TURN + SYSTEM,
    "qwen3_instruct_2507": [*PLAIN, *SYSTEM, CALLING],
    "qwen3_vl": [*PLAIN, *SYSTEM, CALLING],
}
"""Templates without marks, and conversations of which the beginning is rendered as in the whole."""

MARKED_ALONE = {
    "deepseek_r1_distill": PLAIN,
    "deepseekv3": PLAIN,
    "glm4moe": PLAIN,
    "nemotron_3_nano": PLAIN,
    "nemotron_3_super": PLAIN,
    "phi3": PLAIN[1:],
    "qwen3": [*PLAIN[1:], CALLING],
    "qwen3_5_think": [*PLAIN, CALLING],
    "qwen3_8": [*PLAIN, CALLING],
}
"""Templates that answers can be told in by marks alone, at least for these conversations."""

REFUSED = {
    "deepseek_r1_distill": (PLAIN[0], "does not render the beginning of a conversation"),
    "deepseekv3": (PLAIN[0], "does not render the beginning of a conversation"),
    "glm4moe": (PLAIN[0], "writes nothing that ends one (message 2)"),
    "gptoss": (PLAIN[0], "it asks for today's date by strftime_now"),
    "nemotron_3_nano": (PLAIN[0], "does not render the beginning of a conversation"),
    "phi3": (PLAIN[1], "does not render the beginning of a conversation"),
    "qwen3": (PLAIN[1], "does not render the beginning of a conversation"),
    "qwen3_5_think": (PLAIN[1], "does not render the beginning of a conversation"),
    # Content is lost: text in messages, a call, and the tools.
    "smolvlm": (PLAIN[0], "leaves out content of message 1"),
    "idefics3": (PLAIN[0], "leaves out content of message 1"),
    "llava_next": (PLAIN[0], "refuses the messages"),
    "lfm2": (CALLING, "leaves out the tool calls of message 2"),
    "qwen2_5_vl": (CALLING, "leaves out tools[0]"),
    "gemma": (SYSTEM[0], "refuses the messages: System role not supported"),
    "cohere2": (CALLING, "refuses the messages"),
}


def template(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text()


def theirs(folder: Path, name: str, conversation: list[Any], tools: Any) -> dict[str, Any]:
    """Tokens and mask as trl computes them: by the template that it trains with."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer.apply_chat_template(
        conversation,
        tools=tools,
        chat_template=template(f"{name}_training"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )


def assert_alike(folder: Path, name: str, used: str, conversation: list[Any]) -> None:
    tools = TOOLS if conversation is CALLING else None
    expected = theirs(folder, name, conversation, tools)
    example = sft(folder, template(used)).encode(document(messages=conversation, tools=tools))
    assert example is not None
    assert example.trained is not None
    assert example.tokens.tolist() == expected["input_ids"]
    assert example.trained.astype(int).tolist() == expected["assistant_masks"]
    assert example.trained.any()


@pytest.mark.parametrize("name", ALIKE)
def test_prefixes_and_marks_give_the_masks_of_trl(name: str, folder: Path) -> None:
    assert "generation %}" not in template(name)
    for conversation in ALIKE[name]:
        assert_alike(folder, name, name, conversation)
        assert_alike(folder, name, f"{name}_training", conversation)


@pytest.mark.parametrize("name", MARKED_ALONE)
def test_marks_give_the_masks_of_trl(name: str, folder: Path) -> None:
    for conversation in MARKED_ALONE[name]:
        assert_alike(folder, name, f"{name}_training", conversation)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused(name: str, folder: Path) -> None:
    conversation, said = REFUSED[name]
    tools = TOOLS if conversation[:2] == CALLING[:2] else None
    with pytest.raises(UserError) as refused:
        sft(folder, template(name)).encode(document(messages=conversation, tools=tools))
    sentence = refused.value.sentence()
    assert said in sentence
    assert "data.jsonl:7" in sentence
    assert ("valid: a template that marks" in sentence) == ("marks no answers" in sentence)


def test_the_last_answer_needs_no_other_to_be_told(folder: Path) -> None:
    """Qwen's templates leave out what earlier answers thought, and only these change."""
    made = sft(folder, template("qwen3"), last=True)
    example = made.encode(document(messages=PLAIN[1]))
    assert example is not None
    expected = theirs(folder, "qwen3", PLAIN[1], None)
    mask = np.array(expected["assistant_masks"], dtype=bool)
    assert example.trained is not None
    assert example.trained[-8:].tolist() == mask[-8:].tolist()
    assert 0 < example.trained.sum() < mask.sum()


OURS = {"chatml": "qwen3_instruct_2507", "gemma": "gemma3", "llama3": "llama3"}


@pytest.mark.parametrize("name", [*OURS, "qwen"])
def test_templates_of_this_package_write_what_the_families_do(name: str, folder: Path) -> None:
    family = template(OURS.get(name, "qwen3_instruct_2507"))
    for conversation in PLAIN + SYSTEM:
        example = sft(folder, source(name)).encode(document(messages=conversation))
        other = sft(folder, family).encode(document(messages=conversation))
        assert example is not None
        assert other is not None
        assert example.tokens.tolist() == other.tokens.tolist()


def test_tool_calls_are_written_as_qwen_does(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    written = [
        tokenizer.apply_chat_template(CALLING, tools=TOOLS, chat_template=text, tokenize=False)
        for text in (source("qwen"), template("qwen3_instruct_2507"))
    ]
    ours, qwen = (text.partition("<|im_end|>")[2] for text in written)  # after the system turn
    assert ours == qwen
