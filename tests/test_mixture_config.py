"""Weights, stages and changes of a mixture, without a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from atom.errors import UserError
from atom.plugin import Contents, Document, Mixture, Stage, Trained
from atom.run_dir.mixture import resolve
from atom_datasets.mixing.config import FIRST, MixtureConfig
from atom_datasets.mixing.source import MixtureSource
from atom_datasets.mixing.stages import changed, fitting, stages

Command = Callable[..., CompletedProcess[str]]


def config(
    weights: Mapping[str, float], later: Mapping[int, Mapping[str, float]]
) -> dict[str, Any]:
    """Return a section: first weights, and step -> weights."""
    return {
        "name": "mixture",
        "sources": {name: {"name": "stdlib", "weight": weight} for name, weight in weights.items()},
        "stages": {
            f"s{step}": {"from_step": step + 1, "weights": dict(each)}
            for step, each in later.items()
        },
    }


def source_of(**more: Any) -> dict[str, Any]:
    return {"sources": {"a": {"name": "stdlib", **more}, "b": {"name": "stdlib", "weight": 1}}}


def stage_of(**more: Any) -> dict[str, Any]:
    return source_of(weight=1) | {"stages": {"s": {"from_step": 2, "weights": {"a": 1}} | more}}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (source_of(weight=1, tokens=9), "dataset.sources.a: a source has a share"),
        (source_of(tokens=9), "dataset.sources.b.weight=1.0: another source has tokens"),
        (
            source_of(wieght=1),
            "dataset.sources.a: wieght is no key of a source; did you mean weight",
        ),
        (source_of(weight=-1), "greater than or equal to 0"),
        (source_of(weight=float("inf")), "finite number"),
        (source_of(weight=1, max_repetitions=0), "greater than 0"),
        ({"sources": {}}, "a mixture needs sources"),
        ({"sources": {"a": {"name": "x", "weight": 0}}}, "all weights are 0"),
        ({"sources": {"a.b": {"name": "x", "weight": 1}}}, "'a.b' is no name"),
        (
            source_of(weight=1) | {"stages": {"first": {"from_step": 2, "weights": {"a": 1}}}},
            "dataset.stages.first: is the name of the stage with the sources' own weights",
        ),
        (stage_of(from_step=1), "greater than or equal to 2"),
        (stage_of(from_step=None), "either from_step or from_tokens"),
        (stage_of(from_tokens=9), "either from_step or from_tokens"),
        (stage_of(weights={}), "no source has a weight above 0"),
        (stage_of(weights={"a": 0}), "no source has a weight above 0"),
        (stage_of(weights={"a": -1}), "greater than or equal to 0"),
        (stage_of(weights={"a": float("nan")}), "finite number"),
    ],
)
def test_a_mixture_that_says_nothing_definite_is_refused(section: Any, told: str) -> None:
    with pytest.raises((UserError, ValidationError), match=told):
        MixtureConfig.model_validate(section)


def test_two_stages_cannot_begin_at_one_step() -> None:
    section = stage_of()
    section["stages"]["t"] = {"from_step": 2, "weights": {"b": 1}}
    with pytest.raises(UserError, match=r"stages\.t\.from_step=2: the stage s begins there"):
        MixtureConfig.model_validate(section)
    section["stages"]["t"] = {"from_tokens": 99, "weights": {"b": 1}}
    mixed = MixtureConfig.model_validate(section)
    assert [stage.step for stage in fitting(mixed, 98, 9)] == [0, 1, 2]
    with pytest.raises(UserError, match="begins there, too"):
        fitting(mixed, 99, 9)


WEIGHTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from([0, 1, 2, 0.5]), min_size=1)
POSITIVE = WEIGHTS.filter(lambda weights: any(weights.values()))
SECTION = st.tuples(POSITIVE, st.dictionaries(st.integers(1, 8), POSITIVE, max_size=3))


def whole_section(weights: Mapping[str, float], later: Any) -> dict[str, Any]:
    return config(
        {name: weights.get(name, 0) for name in "abc"}, {**later, 9: dict.fromkeys("abc", 1)}
    )


@settings(deadline=None)
@given(SECTION, SECTION, st.integers(1, 10))
def test_a_change_is_refused_if_a_step_that_was_read_differs(
    before: Any, after: Any, steps: int
) -> None:
    def shares_of(section: Any, step: int) -> dict[str, Fraction]:
        """The oracle: the shares of one step."""
        weights, later = section
        for begin in sorted({**later, 9: None}):
            if begin <= step:
                weights = later.get(begin, dict.fromkeys("abc", 1))
        total = sum(map(Fraction, weights.values()))
        return {name: Fraction(weight) / total for name, weight in weights.items() if weight}

    same = all(shares_of(before, step) == shares_of(after, step) for step in range(steps))
    effect = changed(
        "stages.s9.from_step",
        whole_section(*before),
        whole_section(*after),
        Trained(steps=steps, tokens_per_step=100),
    )
    # A border between equal shares is a stage of its own, and may be refused.
    assert effect in (("matters", "refused") if same else ("refused",))
    identical = changed(
        "stages.s9",
        whole_section(*before),
        whole_section(*before),
        Trained(steps=steps, tokens_per_step=1),
    )
    assert identical == "matters"


@settings(deadline=None)
@given(st.integers(1, 10**12), st.integers(1, 10**6))
def test_a_stage_from_tokens_begins_after_them(tokens: int, per_step: int) -> None:
    section = config({"a": 1}, {})
    section["stages"] = {"late": {"from_tokens": tokens, "weights": {"a": 1}}}
    del section["name"]
    begin = stages(MixtureConfig.model_validate(section), per_step)[1].step
    assert begin * per_step >= tokens > (begin - 1) * per_step


@pytest.mark.parametrize(
    ("budgets", "later", "steps", "begin", "told"),
    [
        ((300, 700), {}, 10, 0, None),
        ((300, 799), {}, 10, 0, None),
        ((300, 701), {}, 12, 0, "training.steps=10"),
        ((300, 400), {7: {"a": 1}}, 12, 0, None),
        ((300, 400), {6: {"a": 1}}, 12, 0, "dataset.stages.s6.from_step=8"),
        # A branch reads its budgets after the steps of the other run.
        ((300, 700), {}, 30, 20, None),
        ((300, 2700), {}, 30, 20, "10 steps of the run after step 20 .* training.steps=50"),
        ((300, 400), {27: {"a": 1}}, 30, 20, None),
        ((300, 400), {9: {"a": 1}}, 30, 20, "0 steps after step 20 before .*from_step=28"),
    ],
)
def test_budgets_are_those_of_the_steps(
    budgets: tuple[int, int], later: Any, steps: int, begin: int, told: str | None
) -> None:
    section = config({}, later)
    del section["name"]
    section["sources"] = {
        name: {"name": "stdlib", "tokens": tokens}
        for name, tokens in zip("ab", budgets, strict=True)
    }
    mixed = MixtureConfig.model_validate(section)
    if told is None:
        weights = fitting(mixed, 100, steps, begin)[0].weights
        assert weights == dict(zip("ab", budgets, strict=True))
        return
    with pytest.raises(UserError, match=told):
        fitting(mixed, 100, steps, begin)


def test_a_branch_lists_the_stages_that_it_reads() -> None:
    section = config({"a": 1}, {3: {"a": 2}, 7: {"a": 1}, 9: {"a": 1}})
    del section["name"]
    source: Any = MixtureSource(MixtureConfig.model_validate(section), {"a": Stored(None)})
    mixed = resolve(source, lanes=10, seq_len=10, steps=12, begin=8)
    assert mixed is not None
    assert [(stage.name, stage.first_step) for stage in mixed.stages] == [("s7", 9), ("s9", 10)]
    assert [each.tokens for each in mixed.sources] == [4 * 100]


@dataclass(frozen=True)
class Stored:
    """A source that tells its tokens."""

    tokens: int | None

    def check(self) -> str:
        return str(self.tokens)

    def documents(self) -> list[Document]:
        return [Document("text", str(number)) for number in range(9)]

    def contents(self) -> Contents:
        return Contents(documents=9, tokens=self.tokens)


@dataclass(frozen=True)
class Two:
    """A mixture of two sources, half and half."""

    most: Mapping[str, float] = field(default_factory=dict)

    def mixture(self, **_: int) -> Mixture:
        sources = {"a": Stored(1000), "b": Stored(None)}
        stage = Stage(name=FIRST, step=0, weights={"a": 1, "b": 1})
        return Mixture(sources=sources, stages=(stage,), max_epochs=self.most)


@pytest.mark.parametrize(
    ("steps", "most", "refused"), [(39, 2, False), (40, 2, True), (79, 4.0, False)]
)
def test_a_source_that_would_be_read_too_often_is_refused(
    steps: int, most: float, refused: bool
) -> None:
    contents = Contents(sources={"a": Contents(tokens=1000, documents=9), "b": Contents()})

    def mixed(packing: Any = "concat") -> Any:
        source: Any = Two({"a": most, "b": 2})
        sizes = {"lanes": 10, "seq_len": 10, "steps": steps}
        return resolve(source, **sizes, contents=contents, packing=packing)

    # Without packing it is counted as it is read: a sequence has few tokens, or many.
    assert mixed("none").sources[0].repetitions is None
    if refused:
        with pytest.raises(
            UserError, match=r"2,000 tokens of it, which has 991 to predict: 2\.02 times"
        ) as error:
            mixed()
        assert error.value.key == "dataset.sources.a.max_repetitions"
        return
    told = {source.name: source for source in mixed().sources}
    assert told["a"].repetitions == steps * 50 / (1000 - 9)
    assert told["b"].repetitions is None
    assert told["a"].tokens == steps * 50


@pytest.mark.parametrize(
    ("lanes", "most", "told"),
    [
        (9, 1, None),
        (9, 0.5, "whole readings are counted"),
        (10, 1.5, "2 sequences of a step read the same document"),
        (10, 2, None),
    ],
)
def test_a_source_without_tokens_is_counted_in_readings(
    lanes: int, most: float, told: str | None
) -> None:
    """Of 9 documents, 10 sequences read one twice at once."""
    source: Any = Two({"b": most})
    if told is None:
        assert resolve(source, lanes=lanes, seq_len=10, steps=9) is not None
        return
    with pytest.raises(UserError, match=told) as error:
        resolve(source, lanes=lanes, seq_len=10, steps=9)
    assert error.value.key == "dataset.sources.b.max_repetitions"


def test_tokenizers_are_trained_on_the_first_stage_by_weight() -> None:
    section = config({"a": 3, "b": 1, "c": 0}, {1: {"c": 1}})
    del section["name"]
    mixed = MixtureConfig.model_validate(section)
    texts: Any = {name: dealt_texts(name, size) for name, size in (("a", 10), ("b", 5), ("c", 7))}
    made = MixtureSource(mixed, texts)
    made.check()
    read_ones = [document.id for document in made.lane(0, 1, seed=0, epoch=0)]
    assert {name.partition(":")[0] for name in read_ones} == {"a", "b"}
    characters = {"a": 0, "b": 0}
    for name in read_ones[:40]:
        which = name.partition(":")[0]
        characters[which] += 10 if which == "a" else 5
        assert abs(characters["a"] - 3 * characters["b"]) <= 30
    later = MixtureConfig.model_validate(
        section | {"stages": {"z": {"from_step": 9, "weights": {"c": 1}}}}
    )
    other = MixtureConfig.model_validate(section | {"sources": section["sources"] | {
        "a": {"name": "stdlib", "weight": 4}}})  # fmt: skip
    digests = [ordered(each, texts) for each in (mixed, later, other)]
    assert digests[0] == digests[1] != digests[2]


def ordered(mixed: MixtureConfig, texts: Any) -> str:
    made = MixtureSource(mixed, texts)
    return made.ordered(made.check())


def dealt_texts(name: str, size: int) -> Any:
    from atom.data.dealing import dealt

    @dataclass(frozen=True)
    class Texts:
        def check(self) -> str:
            return name

        def documents(self) -> list[Document]:
            return [Document("x" * size, str(number)) for number in range(40)]

    return dealt(Texts())  # type: ignore[arg-type]
