"""A mixture is read exactly, on every layout, over the border of a stage, and after a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from atom.errors import UserError
from atom.plugin import Contents, Document, Mixture, Stage, Trained
from atom.recipe.run import read
from atom.run_dir import events, metrics
from atom.run_dir.mixture import resolve
from atom_datasets.mixing.config import MixtureConfig
from atom_datasets.mixing.source import MixtureSource
from atom_datasets.mixing.stages import FIRST, changed, fitting, stages

Command = Callable[..., CompletedProcess[str]]

TINY = (
    "dataset=mixture",
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "device=cpu",
    "architecture=llama3_tiny",
    "architecture.n_layers=1",
    "architecture.dim=64",
    "optimizer.lr=1e-3",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "metrics=none",
    "data.trace=true",
    "checkpoint.interval=2",
)
WEB = "dataset.sources.web={name: local, path: web, weight: 0.7}"
CODE = "dataset.sources.code={name: local, path: code, weight: 0.3}"
MATH = "dataset.sources.math={name: local, path: math, weight: 0}"
ANNEAL = "dataset.stages.anneal={from_step: 4, weights: {code: 1}}"
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for name in ("web", "code", "math"):
        (folder / name).mkdir()
        for number in range(12):
            text = f"{name} has the text {number} " * (8 + number)
            (folder / name / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def train(atom: Command, place: Path) -> Callable[..., CompletedProcess[str]]:
    def train(run: str, *settings: str, steps: int = STEPS) -> CompletedProcess[str]:
        words = (*TINY, f"training.steps={steps}", f"run.dir={run}", *settings)
        return atom("train", *words, cwd=place, OMP_NUM_THREADS="1")

    return train


@pytest.fixture(scope="module")
def whole(train: Command, place: Path) -> Path:
    """A run on one rank that is not interrupted."""
    done = train("whole", WEB, CODE, ANNEAL)
    assert done.returncode == 0, done.stderr
    return place / "whole"


@pytest.fixture(scope="module")
def sharded(train: Command, place: Path) -> Path:
    """The run on two ranks, which lists its sources in another order."""
    ranks = ("launch.ranks=2", "parallelism=fsdp")
    done = train("sharded", ANNEAL, CODE, WEB, *ranks)
    assert done.returncode == 0, done.stderr
    return place / "sharded"


@pytest.fixture
def half(sharded: Path) -> Iterator[str]:
    """A copy of the sharded run, stopped after step 4: one step of the stage is done."""
    copy = sharded.with_name("half")
    shutil.copytree(sharded, copy)
    shutil.rmtree(copy / "checkpoint" / "step-6")
    for file in (copy / "logs").glob("samples_rank_*"):
        file.unlink()
    yield copy.name
    shutil.rmtree(copy)


def samples(run: Path) -> dict[int, dict[int, list[Any]]]:
    """Return step -> lane -> spans; of a step that was repeated, the last."""
    found: dict[int, dict[int, list[Any]]] = {}
    for file in sorted((run / "logs").glob("samples_rank_*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            lanes = {int(lane): spans for lane, spans in row["lanes"].items()}
            found[row["step"]] = found.get(row["step"], {}) | lanes
    return found


def losses(run: Path) -> list[float]:
    return [row.loss for row in metrics.read(run / metrics.FILE_NAME)]


def sources(lanes: Mapping[int, list[Any]]) -> set[str]:
    return {span[1].partition(":")[0] for spans in lanes.values() for span in spans}


@pytest.mark.slow
def test_layouts_read_the_same_mixture(whole: Path, sharded: Path) -> None:
    assert samples(whole) == samples(sharded)
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-5)
    read_by = {step: sources(lanes) for step, lanes in samples(whole).items()}
    assert all(read_by[step] == {"web", "code"} for step in (1, 2, 3))
    assert all(read_by[step] == {"code"} for step in (4, 5, 6))
    resolved = read(whole / "run.yaml").resolved
    assert resolved is not None
    assert resolved.mixture is not None
    assert [stage.first_step for stage in resolved.mixture.stages] == [1, 4]
    found = [spans for lanes in samples(whole).values() for spans in lanes.values()]
    for told in resolved.mixture.sources:
        # A sequence has one source, so it is counted by its first document.
        mine = [spans for spans in found if spans[0][1].startswith(f"{told.name}: ")]
        assert told.tokens == 64 * len(mine)


@pytest.mark.slow
def test_a_run_resumes_on_another_layout(
    train: Command, half: str, place: Path, whole: Path
) -> None:
    done = train(half, WEB, CODE, ANNEAL)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 4" in done.stdout
    assert samples(place / half)[5] == samples(whole)[5]
    assert samples(place / half)[6] == samples(whole)[6]
    assert losses(place / half) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_a_later_stage_changes_while_a_run_resumes(
    train: Command, half: str, place: Path, whole: Path, atom: Command
) -> None:
    final = "dataset.stages.final={from_step: 6, weights: {math: 3, web: 1}}"
    done = train(half, MATH, WEB, CODE, ANNEAL, final, steps=7)
    assert done.returncode == 0, done.stderr
    run = place / half
    assert samples(run)[5] == samples(whole)[5]
    for step in (6, 7):
        names = [spans[0][1].partition(":")[0] for spans in samples(run)[step].values()]
        assert sorted(names) == ["math"] * 3 + ["web"]
    # `web` goes on where step 3 left it.
    read_before = {
        (span[1], span[2])
        for step in (1, 2, 3)
        for lane in samples(whole)[step].values()
        for span in lane
    }
    later = [span for step in (6, 7) for lane in samples(run)[step].values() for span in lane]
    assert not any((span[1], span[2]) in read_before for span in later if span[0] == 0)
    (change,) = [event for event in events.read(run) if event["event"] == events.CHANGED]
    assert change["settings"]["dataset.stages.final"][0] is None
    assert "changed, with an effect on the losses:\n  dataset.sources.math" in done.stdout
    resolved = read(run / "run.yaml").resolved
    assert resolved is not None
    assert resolved.mixture is not None
    assert resolved.mixture.names == ["code", "web", "math"]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "stages from step 1 first: web 70 %, code 30 %" in lines
    assert "from step 6 final: math 75 %, web 25 %" in lines
    assert "math 21.4 %, 384 tokens, 12 documents" in lines
    # A checkpoint of three sources is resumed from, too.
    again = train(half, MATH, WEB, CODE, ANNEAL, final, steps=8)
    assert again.returncode == 0, again.stderr
    report = atom("report", str(run), cwd=place)
    assert report.returncode == 0, report.stderr
    page = next(run.glob("report*.html")).read_text()
    assert "math 75 %, web 25 %" in page
    assert "from step 6" in page


REFUSED = {
    "the begin of the current stage": (
        (WEB, CODE, "dataset.stages.anneal={from_step: 5, weights: {code: 1}}"),
        "dataset.stages.anneal.from_step=5",
    ),
    "the weights of the current stage": (
        (WEB, CODE, "dataset.stages.anneal={from_step: 4, weights: {code: 2, web: 1}}"),
        "dataset.stages.anneal.weights.code=2",
    ),
    "an earlier weight": (
        ("dataset.sources.web={name: local, path: web, weight: 0.6}", CODE, ANNEAL),
        "dataset.sources.web.weight=0.6",
    ),
    "a source that was read, removed": ((CODE, ANNEAL), "dataset.sources.web=null"),
    "a source that was read, with another parameter": (
        ("dataset.sources.web={name: local, path: web, weight: 0.7, max_chars: 64}", CODE, ANNEAL),
        "dataset.sources.web.max_chars=64",
    ),
    "a new stage within what has been read": (
        (WEB, CODE, ANNEAL, "dataset.stages.b={from_step: 2, weights: {web: 1}}"),
        "dataset.stages.b=",
    ),
    "a new source within what has been read": (
        (WEB, CODE, ANNEAL, "dataset.sources.math={name: local, path: math, weight: 1}"),
        "dataset.sources.math=",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_been_read_does_not_change(
    case: str, forked: Command, half: str, place: Path
) -> None:
    words, told = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in (place / half).rglob("*")}
    done = forked("train", *TINY, "training.steps=6", f"run.dir={half}", *words, cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"atom: {told}"), done.stderr
    assert "half holds checkpoints of a run with" in done.stderr
    assert "resume.force=true" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (place / half).rglob("*")} == before


@pytest.mark.slow
def test_files_of_a_source_that_was_read_do_not_change(
    atom: Command, half: str, place: Path
) -> None:
    words = ("train", *TINY, "training.steps=6", f"run.dir={half}", WEB, CODE, ANNEAL)
    page = place / "web" / "3.txt"
    text = page.read_text()
    page.write_text("another text")
    try:
        done = atom(*words, cwd=place)
    finally:
        page.write_text(text)
    assert done.returncode == 2, done.stdout
    assert "changed: web/3.txt" in done.stderr


def stage(begin: str, weights: str) -> str:
    return f"dataset.stages.late={{{begin}, weights: {weights}}}"


BAD = {
    "no source": (
        (),
        "dataset.sources (command line): is required and has no value",
    ),
    "an unknown parameter": (
        (WEB, "dataset.sources.web.pth=web"),
        "dataset.sources.web.pth=web (command line): pth is no key here; did you mean path?",
    ),
    "no share": ((WEB, "dataset.sources.web.weight=null"), "either weight or tokens"),
    "nan": ((WEB, "dataset.sources.web.weight=.nan"), "weight=.nan (command line): must be a num"),
    "a source without a stage": (
        (WEB, MATH),
        "dataset.sources.math.weight=0.0 (command line): no stage reads the source",
    ),
    "an unknown source": (
        (WEB, stage("from_step: 2", "{wep: 1}")),
        "dataset.stages.late.weights.wep=1.0 (command line): there is no source wep; did you mean "
        "web?",
    ),
    "stages of a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, sources: {web: {name: local, path: web, "
            "weight: 1}}, stages: {b: {from_step: 2, weights: {web: 1}}}}",
        ),
        "dataset.sources.a.stages (command line): the mixture is part of another one",
    ),
    "repetitions of a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, max_repetitions: 2, "
            "sources: {web: {name: local, path: web, weight: 1}}}",
        ),
        "dataset.sources.a.max_repetitions=2.0 (command line): a mixture has no repetitions",
    ),
    "files that are not there, in a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, "
            "sources: {web: {name: local, path: wep, weight: 1}}}",
        ),
        "dataset.sources.a.sources.web.path=wep (command line): there is no such file",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_without_torch(case: str, forked: Command, place: Path) -> None:
    words, told = BAD[case]
    done = forked("train", *TINY, "training.steps=6", "run.dir=bad", *words, cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (place / "bad").exists()


@pytest.mark.slow
def test_a_stage_after_the_run_is_refused(train: Command, place: Path) -> None:
    done = train("bad", WEB, stage("from_step: 7", "{web: 1}"))
    assert done.returncode == 2
    assert (
        "dataset.stages.late.from_step=7 (command line): the run ends after step 6" in done.stderr
    )
    assert not (place / "bad").exists()


# ---------------------------------------------------------------------------- without a run


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
        (source_of(weight=-1), "greater than or equal to 0"),
        (source_of(weight=float("inf")), "finite number"),
        (source_of(weight=1, max_repetitions=0), "greater than 0"),
        ({"sources": {}}, "a mixture needs sources"),
        ({"sources": {"a": {"name": "x", "weight": 0}}}, "all weights are 0"),
        ({"sources": {"a.b": {"name": "x", "weight": 1}}}, "'a.b' is no name"),
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
    ("budgets", "later", "steps", "told"),
    [
        ((300, 700), {}, 10, None),
        ((300, 799), {}, 10, None),
        ((300, 701), {}, 12, "training.steps=10"),
        ((300, 400), {7: {"a": 1}}, 12, None),
        ((300, 400), {6: {"a": 1}}, 12, "dataset.stages.s6.from_step=8"),
    ],
)
def test_budgets_are_those_of_the_steps(
    budgets: tuple[int, int], later: Any, steps: int, told: str | None
) -> None:
    section = config({}, later)
    del section["name"]
    section["sources"] = {
        name: {"name": "stdlib", "tokens": tokens}
        for name, tokens in zip("ab", budgets, strict=True)
    }
    mixed = MixtureConfig.model_validate(section)
    if told is None:
        weights = fitting(mixed, 100, steps)[0].weights
        assert weights == dict(zip("ab", budgets, strict=True))
        return
    with pytest.raises(UserError, match=told):
        fitting(mixed, 100, steps)


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
    ("steps", "most", "refused"), [(40, 2, False), (41, 2, True), (80, 4.0, False)]
)
def test_a_source_that_would_be_read_too_often_is_refused(
    steps: int, most: float, refused: bool
) -> None:
    contents = Contents(sources={"a": Contents(tokens=1000, documents=9), "b": Contents()})

    def mixed() -> Any:
        source: Any = Two({"a": most, "b": 1})
        return resolve(source, lanes=10, seq_len=10, steps=steps, contents=contents)

    if refused:
        with pytest.raises(UserError, match=r"2\.05 times") as error:
            mixed()
        assert error.value.key == "dataset.sources.a.max_repetitions"
        return
    told = {source.name: source for source in mixed().sources}
    assert told["a"].repetitions == steps * 50 / 1000
    assert told["b"].repetitions is None
    assert told["a"].tokens == steps * 50


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
