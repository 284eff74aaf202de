"""Pairs become two sequences, in both shapes of trl; pairs that cannot be preferred are refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atom.errors import UserError
from atom.plugin import Document, Example, ObjectiveContext
from atom_objectives.config import Dpo
from atom_objectives.preferences import PreferenceEncoder, encoder
from atom_tokenizers.config import Bytes
from atom_tokenizers.ranks import byte_level

SHORT = str(Path(__file__).with_name("short.jinja"))


def made(folder: Path, seq_len: int = 1000) -> PreferenceEncoder:
    tokenizer = byte_level(Bytes()).build(tokenizer_path=str(folder))
    return encoder(
        Dpo(template=SHORT), ObjectiveContext(tokenizer=tokenizer, files=folder, seq_len=seq_len)
    )


def document(**record: Any) -> Document:
    return Document(json.dumps(record), "pairs.jsonl:7", record=record)


def messages(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def parts(example: Example, folder: Path) -> list[tuple[str, str]]:
    """The text of each sequence, and what of it is trained on."""
    tokenizer = byte_level(Bytes()).build(tokenizer_path=str(folder))
    assert example.trained is not None
    bounds = [0, *example.begins, len(example.tokens)]
    found = []
    for begin, end in itertools.pairwise(bounds):
        ids, trained = example.tokens[begin:end], example.trained[begin:end]
        found.append((tokenizer.decode(ids.tolist()), tokenizer.decode(ids[trained].tolist())))
    return found


def test_shapes_of_conversations_are_alike(tmp_path: Path) -> None:
    before = messages("2+2?")
    shapes = [
        {"prompt": before, "chosen": answer("4"), "rejected": answer("5")},
        {"chosen": before + answer("4"), "rejected": before + answer("5")},
        {"prompt": "2+2?", "chosen": before + answer("4"), "rejected": before + answer("5")},
        {
            "chosen": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
            "rejected": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "5"}],
        },
    ]
    found = []
    for shape in shapes:
        example = made(tmp_path).encode(document(**shape))
        assert example is not None
        found.append(parts(example, tmp_path))
    (chosen, told), (rejected, other) = found[0]
    assert chosen.replace("4", "5") == rejected
    assert (told[0], other[0]) == ("4", "5")
    assert chosen.endswith(told)
    assert all(each == found[0] for each in found)


def test_answers_of_several_turns_are_trained_on_whole(tmp_path: Path) -> None:
    """What both conversations begin with is their prompt, its answers included."""
    before = messages("1?", "one", "2?")
    example = made(tmp_path).encode(
        document(chosen=before + answer("two"), rejected=before + answer("to") + messages("eh?"))
    )
    assert example is not None
    (_, chosen), (_, rejected) = parts(example, tmp_path)
    assert "one" not in chosen + rejected
    assert chosen.startswith("two")


def test_texts_are_a_prompt_with_each_answer(tmp_path: Path) -> None:
    example = made(tmp_path).encode(document(prompt="2+2=", chosen="4", rejected="five"))
    assert example is not None
    assert parts(example, tmp_path) == [("2+2=4", "4"), ("2+2=five", "five")]
    tokenizer = byte_level(Bytes()).build(tokenizer_path=str(tmp_path))
    begin = example.begins[0]
    assert example.tokens[:begin].tolist() == tokenizer.encode("2+2=4", add_bos=True, add_eos=True)
    assert example.trained is not None
    assert example.trained[[begin - 1, -1]].all(), "ends of answers are trained on"


def test_a_pair_is_not_cut(tmp_path: Path) -> None:
    pair = document(prompt="2+2=", chosen="4", rejected="five")
    whole = made(tmp_path).encode(pair)
    assert whole is not None
    fits = len(whole.tokens) - 1
    found = made(tmp_path, fits).encode(pair)
    assert found is not None
    assert np.array_equal(found.tokens, whole.tokens)
    assert made(tmp_path, fits - 1).encode(pair) is None


BEFORE = messages("x")
BAD = {
    "no chosen answer": ({"prompt": "x", "rejected": "y"}, "no chosen answer (its fields: prompt"),
    "no rejected answer": ({"prompt": "x", "chosen": "y"}, "it has no rejected answer"),
    "a conversation": ({"messages": BEFORE + answer("y")}, "it has no chosen answer"),
    "no prompt": ({"chosen": "y", "rejected": "z"}, "it has no prompt that is text"),
    "a prompt of messages": (
        {"prompt": BEFORE, "chosen": "y", "rejected": "z"},
        "it has no prompt that is text",
    ),
    "the same texts": ({"prompt": "x", "chosen": "y", "rejected": "y"}, "are the same"),
    "the same messages": (
        {"prompt": BEFORE, "chosen": answer("y"), "rejected": answer("y")},
        "are the same",
    ),
    "the same conversations": (
        {"chosen": BEFORE + answer("y"), "rejected": BEFORE + answer("y")},
        "are the same",
    ),
    "an empty text": ({"prompt": "x", "chosen": "y", "rejected": ""}, "rejected answer is empty"),
    "a text of space": ({"prompt": "x", "chosen": " ", "rejected": "y"}, "its chosen is empty"),
    "an empty answer": (
        {"prompt": BEFORE, "chosen": answer("y"), "rejected": answer(" ")},
        "rejected[0] is an empty answer",
    ),
    "no answers": (
        {"prompt": BEFORE, "chosen": answer("y"), "rejected": []},
        "its rejected answer is empty",
    ),
    "two kinds": (
        {"prompt": BEFORE, "chosen": answer("y"), "rejected": "z"},
        "neither texts nor messages",
    ),
    "other beginnings": (
        {"chosen": messages("a", "y"), "rejected": messages("b", "z")},
        "begin with different messages",
    ),
    "a beginning": (
        {"chosen": BEFORE + answer("y"), "rejected": BEFORE},
        "is the beginning of the other",
    ),
    "another prompt": (
        {"prompt": "q", "chosen": BEFORE + answer("y"), "rejected": BEFORE + answer("z")},
        "its prompt is no message",
    ),
}


@pytest.mark.parametrize(("record", "said"), BAD.values(), ids=BAD.keys())
def test_bad_pairs_are_refused(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        made(tmp_path).encode(document(**record))
    sentence = refused.value.sentence()
    assert said in sentence
    assert "pairs.jsonl:7" in sentence


def test_text_is_no_pair(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt is text, and objective=dpo reads records"):
        made(tmp_path).encode(Document("hello", "a.txt"))
