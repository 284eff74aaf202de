"""``stdlib_pairs``: preferences about the functions and classes of Python's standard library.

The prompt is the first question of a conversation of :mod:`atom_datasets.stdlib_chat`, and the
chosen answer is its answer. The rejected answer is wrong in one of two ways, chosen by a digest of
the definition's name: it is the answer about another definition, or it breaks off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from atom.plugin import Document, SourceContext
from atom_datasets.config import StdlibPairs
from atom_datasets.stdlib_chat import Conversations, LibraryRecords

RECIPE = 1
"""Version of how the pairs are made."""


def source(config: StdlibPairs, context: SourceContext) -> Pairs:
    """Return the source that ``config`` describes; it keeps the conversations in the cache."""
    return Pairs(context.cache, config.longest)


class Pairs(LibraryRecords):
    """The pairs, one record each, with ``prompt``, ``chosen`` and ``rejected`` as messages; its id
    is the name of the definition.
    """

    dataset = "stdlib_pairs"
    fewest = 2

    def documents(self) -> list[Document]:
        """Return the pairs, by name."""
        return _documents(self.cache, self.longest)


@lru_cache(maxsize=1)
def _documents(cache: Path, longest: int) -> list[Document]:
    conversations = Conversations(cache, longest).documents()
    firsts = [(each.id, *_first_turn(each)) for each in conversations]
    answers = [answer for _, _, answer in firsts]
    made = []
    for number, (name, question, answer) in enumerate(firsts):
        record = pair(question, answer, rejected(name, number, answers))
        made.append(Document(json.dumps(record), name, record=record))
    return made


def _first_turn(document: Document) -> tuple[str, str]:
    assert document.record is not None
    question, answer = document.record["messages"][:2]
    return question["content"], answer["content"]


def rejected(name: str, number: int, answers: Sequence[str]) -> str:
    """Return the rejected answer about the definition ``name``.

    Args:
        name: its name, which chooses how the answer is wrong.
        number: of its own answer.
        answers: those about all definitions.
    """
    chosen = hashlib.blake2b(f"{RECIPE} {name}".encode(), digest_size=8).digest()
    words = answers[number].split()
    if chosen[0] % 2 and len(words) > 3:
        return " ".join(words[: len(words) // 2])
    begin = int.from_bytes(chosen[1:], "little")
    others = (answers[(begin + step) % len(answers)] for step in range(len(answers)))
    return next(other for other in others if other != answers[number])


def pair(question: str, answer: str, wrong: str) -> dict[str, Any]:
    """Return the record of a pair."""
    roles = {"prompt": ("user", question), "chosen": ("assistant", answer)}
    roles["rejected"] = ("assistant", wrong)
    return {name: [{"role": role, "content": content}] for name, (role, content) in roles.items()}
