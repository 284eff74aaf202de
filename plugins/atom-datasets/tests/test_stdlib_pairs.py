"""Pairs are made of documentation strings."""

from atom_datasets.stdlib_pairs import pair, rejected

ANSWERS = [f"Return the number {number} of all." for number in range(40)]


def test_a_rejected_answer_is_another_one_or_breaks_off() -> None:
    made = [rejected(f"os.f{number}", number, ANSWERS) for number in range(40)]
    assert made == [rejected(f"os.f{number}", number, ANSWERS) for number in range(40)]
    for own, wrong in zip(ANSWERS, made, strict=True):
        assert wrong != own
        assert wrong in ANSWERS or own.startswith(f"{wrong} ")
    others = sum(wrong in ANSWERS for wrong in made)
    assert 5 < others < 35


def test_a_pair_has_the_shape_of_trl() -> None:
    assert pair("What?", "This.", "That.") == {
        "prompt": [{"role": "user", "content": "What?"}],
        "chosen": [{"role": "assistant", "content": "This."}],
        "rejected": [{"role": "assistant", "content": "That."}],
    }
