"""Conversations are made of documentation strings."""

import pytest

from atom_datasets.stdlib_chat import record, sentence

SENTENCES = {
    'Copy data and mode bits ("cp src dst").\n\nReturn the file\'s destination.': (
        'Copy data and mode bits ("cp src dst").'
    ),
    "return the greatest common\n    divisor of x and y": (
        "Return the greatest common divisor of x and y."
    ),
    "Version 1.2.3 is read, e.g. from a file. More.": "Version 1.2.3 is read, e.g. from a file.",
    "Short.": None,
    "connect(address) -> socket and a long text": None,
    None: None,
    "x " * 200: None,
}


@pytest.mark.parametrize(("docstring", "expected"), SENTENCES.items())
def test_an_answer_is_the_first_sentence(docstring: str | None, expected: str | None) -> None:
    assert sentence(docstring, 200) == expected


def test_a_conversation_depends_on_the_name_alone() -> None:
    made = [record(f"os.path.f{number}", "os.path", "Does it.") for number in range(40)]
    assert made == [record(f"os.path.f{number}", "os.path", "Does it.") for number in range(40)]
    assert {len(each["messages"]) for each in made} == {2, 4}
    assert len({each["messages"][0]["content"][:4] for each in made}) == 3
    assert made[0]["messages"][1] == {"role": "assistant", "content": "Does it."}
