"""Validation tells how a model does on other text, and leaves training alone."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data import validation
from atom.data.dealing import dealt
from atom.data.held_out import Side
from atom.data.lanes import IGNORED, Lane, Reading, Sources
from atom.errors import UserError
from atom.plugin import Document, Mixture, Stage
from atom.run_dir import metrics, validated
from atom.run_dir.kept import Kept
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.validated import SetResult

BOS, EOS = 256, 257
LENGTH = 8


class Bytes:
    """A tokenizer of bytes."""

    bos_id, eos_id = BOS, EOS

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        return [BOS] * add_bos + list(text.encode()) + [EOS] * add_eos

    def byte_lengths(self) -> list[int | None]:
        return [1] * 256 + [0, 0]


class Silent(Bytes):
    """A tokenizer that does not tell the bytes of its ids."""

    byte_lengths = None  # type: ignore[assignment]


class Unsure(Bytes):
    """A tokenizer with an id whose bytes depend on the text."""

    def byte_lengths(self) -> list[int | None]:
        return [None if number == ord("?") else 1 for number in range(256)] + [0, 0]


@dataclass(frozen=True)
class Texts:
    texts: tuple[str, ...]

    def check(self) -> str:
        return ""

    def documents(self) -> Texts:
        return self

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Document:
        return Document(self.texts[index], str(index))


@dataclass(frozen=True)
class Mixed:
    """Two sources in a mixture, one of which may be read once."""

    def check(self) -> str:
        return ""

    def lane(self, *_: Any, **__: Any) -> Iterator[Document]:
        raise AssertionError("sequences are mixed, not documents")

    def digests(self) -> dict[str, str]:
        return {}

    def mixture(self, **_: int) -> Mixture:
        sources = {"a": Texts(("a" * 64,)), "b": Texts(("b" * 64,))}
        stage = Stage(name="", step=0, weights={"a": 0.5, "b": 0.5})
        return Mixture(sources=sources, stages=(stage,), max_epochs={"a": 1})


def read(*texts: str, encoder: Any = None, tokens: int = 10**6, **share: int) -> Any:
    source = dealt(Texts(texts))
    return validation.read(source, encoder or Bytes(), tokens=tokens, seq_len=LENGTH, **share)


texts = st.lists(st.text("ab é", max_size=30), min_size=1, max_size=12).filter(any)


@settings(deadline=None)
@given(texts, st.integers(1, 5), st.integers(1, 200))
def test_ranks_share_the_sequences_of_one(words: list[str], ranks: int, tokens: int) -> None:
    """Dealt again, the shares of any number of ranks are the set, and its numbers are the same."""
    whole = read(*words, tokens=tokens)
    shares = [read(*words, tokens=tokens, rank=rank, ranks=ranks) for rank in range(ranks)]
    for share in shares:
        assert (share.sequences, share.tokens, share.bytes, share.digest) == (
            whole.sequences,
            whole.tokens,
            whole.bytes,
            whole.digest,
        )
    for number in range(whole.sequences):
        share = shares[number % ranks]
        for name in ("inputs", "labels", "positions"):
            there, here = getattr(share, name)[number // ranks], getattr(whole, name)[number]
            assert np.array_equal(there, here)
    assert sum(len(share.inputs) for share in shares) == whole.sequences


@settings(deadline=None)
@given(texts)
def test_each_byte_of_the_text_is_predicted_once(words: list[str]) -> None:
    """And BOS and EOS never are: the labels are the bytes of the documents, in some order."""
    found = read(*words)
    labels = found.labels[found.labels != IGNORED]
    assert sorted(labels) == sorted("".join(words).encode())
    assert found.tokens == found.bytes == len(labels)


def test_tokens_are_rounded_up_to_sequences() -> None:
    assert read("a" * 100, tokens=LENGTH + 1).tokens == 2 * LENGTH
    assert read("a" * 100, tokens=LENGTH).tokens == LENGTH


def test_a_set_without_text_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        read("", "")


@pytest.mark.parametrize(("encoder", "known"), [(Silent(), None), (Unsure(), None), (Bytes(), 3)])
def test_bytes_that_are_unknown_are_not_told(encoder: Any, known: int | None) -> None:
    found = read("a?b", encoder=encoder)
    assert (found.tokens, found.bytes) == (3, known)


def test_a_mixture_is_read_by_sequence_until_a_source_ends() -> None:
    found = validation.read(dealt(Mixed()), Bytes(), tokens=96, seq_len=LENGTH)
    letters = found.labels[found.labels != IGNORED]
    assert {ord("a"), ord("b")} == set(letters.tolist())
    assert abs(int((letters == ord("a")).sum()) - int((letters == ord("b")).sum())) <= LENGTH


# ---------------------------------------------------------------------------- held out


def ids(words: list[str], side: Side, *, seed: int = 0, lanes: int = 1) -> set[int]:
    """Return the documents that lanes read on one side, in about three epochs."""
    source = dealt(Texts(tuple(words)))
    reading = Reading(source, seed=seed, lanes=lanes, seq_len=4, side=side)
    found = set()
    for number in range(lanes):
        lane = Lane(number, reading, Sources(reading), Bytes())
        with suppress(UserError):  # a lane without a document on this side
            parts = lane.parts()
            while parts[-1].epoch < 3:
                found |= {int(part.document.id) for part in parts}
                parts = lane.parts()
    return found


@settings(deadline=None, max_examples=50)
@given(texts, st.floats(0, 1), st.integers(0, 99), st.integers(1, 4))
def test_no_text_is_on_both_sides(words: list[str], fraction: float, seed: int, lanes: int) -> None:
    """Whatever the seed and the lanes; the same text twice is on one side."""
    held_out = {n for n, text in enumerate(words) if text and share(text) < fraction}
    others = {n for n, text in enumerate(words) if text} - held_out
    assert ids(words, Side(fraction, held_out=True)) == held_out
    assert ids(words, Side(fraction), seed=seed) == others
    assert ids(words, Side(fraction), seed=seed, lanes=lanes) <= others


def share(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(digest, "little") / 2**64


def test_the_fraction_is_that_of_the_documents() -> None:
    side = Side(0.1, held_out=True)
    found = sum(side.has(Document(f"text {number}", "")) for number in range(10_000))
    assert abs(found - 1000) < 4 * math.sqrt(10_000 * 0.1 * 0.9)


def test_stored_documents_are_split_by_their_tokens_and_parts_are_trained_on() -> None:
    held_out = Side(0.5, held_out=True)
    for number in range(20):
        stored = [
            Document("", str(id_), tokens=np.array([number], dtype))
            for id_, dtype in enumerate(("uint16", "int32"))
        ]
        assert len({held_out.has(each) for each in stored}) == 1
        assert not held_out.has(Document(f"{number}", "", ends=False))


# ---------------------------------------------------------------------------- results


@given(st.floats(), st.integers(0, 2**53), st.none() | st.integers(0, 2**53))
def test_a_result_comes_back_from_a_row(loss: float, tokens: int, size: int | None) -> None:
    before = SetResult(loss=loss, tokens=tokens, bytes=size, data="0" * 16)
    line = StepMetrics(
        step=1,
        loss=1.0,
        grad_norm=1.0,
        lr=1.0,
        tokens_seen=1,
        tokens_per_second=1.0,
        step_seconds=1.0,
        memory_gib=1.0,
        validation={"web": before},
    ).to_json()
    after = (StepMetrics.from_json(line).validation or {})["web"]
    assert (after.tokens, after.bytes, after.data) == (tokens, size, "0" * 16)
    assert after.loss == loss or (math.isnan(after.loss) and not math.isfinite(loss))


@pytest.mark.parametrize(
    "value", [[], {"a": 1}, {"a": {}}, {"a": {"loss": "1", "tokens": 1}}, {"a": {"tokens": -1}}]
)
def test_what_is_no_result_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="validation"):
        validated.read(value)


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """Text of 12 bytes that costs 6 nats: by bytes, and by tokens of three bytes."""
    by_bytes = SetResult(loss=6 / 12, tokens=12, bytes=12)
    by_words = SetResult(loss=6 / 4, tokens=4, bytes=12)
    assert by_bytes.bits_per_byte == by_bytes.loss / math.log(2)
    assert by_words.bits_per_byte == pytest.approx(by_bytes.bits_per_byte, rel=1e-12)
    assert by_words.perplexity == math.exp(1.5)


def test_the_best_are_kept_by_the_loss_of_a_set(tmp_path: Path) -> None:
    writer = metrics.MetricsWriter(tmp_path / metrics.FILE_NAME)
    losses = {1: 5.0, 2: 3.0, 3: math.nan, 4: 4.0, 5: 6.0, 6: 7.0}
    for step, loss in losses.items():
        row = dict.fromkeys(("grad_norm", "lr", "tokens_per_second", "step_seconds"), 1.0)
        result = {"web": SetResult(loss=loss, tokens=1)} if step != 5 else None
        writer.append(
            StepMetrics(
                step=step, loss=-step, tokens_seen=1, memory_gib=1.0, validation=result, **row
            )
        )
    writer.close()
    steps = [1, 2, 3, 4, 5, 6]
    assert Kept(1, best=2, best_of="web").among(steps, tmp_path) == {2, 4, 6}
    assert Kept(1, best=2).among(steps, tmp_path) == {5, 6}
    assert Kept(2, every=3).among(steps, tmp_path) == {3, 5, 6}


# ---------------------------------------------------------------------------- bad input

SET = "validation.sets.web={name: local, path: %s}"

BAD = {
    "no such dataset": (
        ["validation.sets.web=locl"],
        "atom: validation.sets.web.name=locl: there is no dataset locl; did you mean local",
    ),
    "a wrong parameter": (
        ["validation.sets.web={name: local, paht: x}"],
        "atom: validation.sets.web.paht=x: paht is no key here; did you mean path?",
    ),
    "no such folder": ([SET % "nowhere"], "atom: validation.sets.web.path="),
    "no text": ([SET % "empty"], "atom: validation.sets.web"),
    "a name that is none": (
        ["validation.sets={a b: stdlib}"],
        "atom: validation.sets={a b: stdlib}: 'a b' cannot name a set; valid: letters, "
        "digits, _ and -",
    ),
    "an interval and no set": (
        ["validation.interval=10"],
        "atom: validation.interval=10: has no effect without validation.sets; valid: 500, or "
        "leave it out",
    ),
    "the name of what is held out": (
        ["validation.sets.held_out=stdlib", "validation.fraction=0.1"],
        "atom: validation.sets.held_out: is the set of validation.fraction=0.1; valid: another",
    ),
    "windows, of which none is held out": (
        ["validation.fraction=0.1", "data.packing=windows"],
        "atom: validation.fraction=0.1: holds documents out, and data.packing=windows reads",
    ),
    "a fraction that holds nothing out": (
        ["dataset=local", "dataset.path=texts", "validation.fraction=1e-9"],
        "atom: validation.fraction=1e-09: holds out no document of this dataset with text; valid: "
        "another fraction, or 0",
    ),
    "all": (["validation.fraction=1"], "atom: validation.fraction=1: "),
    "the best of no set": (
        ["checkpoint.keep_best=1", "checkpoint.keep_best_of=web"],
        "atom: checkpoint.keep_best_of=web: the run has no validation sets; valid: one of "
        "validation.sets, or null for the training loss",
    ),
    "the best of another set": (
        [SET % "texts", "checkpoint.keep_best=1", "checkpoint.keep_best_of=wbe"],
        "atom: checkpoint.keep_best_of=wbe: there is no such validation set; did you mean web?",
    ),
    "checkpoints that are not validated": (
        [
            *(SET % "texts", "checkpoint.keep_best=1", "checkpoint.keep_best_of=web"),
            *("validation.interval=4", "checkpoint.interval=6"),
        ],
        "atom: validation.interval=4: leaves checkpoints (checkpoint.interval=6) without a loss "
        "of web that checkpoint.keep_best=1 could compare; valid: a divisor of 6",
    ),
    "the best, and all are kept": (
        [SET % "texts", "checkpoint.keep_best_of=web"],
        "atom: checkpoint.keep_best_of=web: has no effect with checkpoint.keep_best=0",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_validated_is_refused_at_once(
    name: str, forked: Callable, tmp_path: Path
) -> None:
    overrides, sentence = BAD[name]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    result = forked("train", "tokenizer=bytes", "run.dir=run", *overrides, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    said = result.stderr.replace(" (command line)", "")
    assert said.startswith(sentence), said
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- the command

TEXT = "the cat sat on the mat, it's 1234; größer Straße 日本語 🙂 and don't go. " * 40
TOKENS = 640
SMALL = (
    *("architecture=llama3_tiny", "architecture.dim=64", "architecture.n_layers=2"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4", "device=cpu"),
    *("training.steps=4", "lr_scheduler.warmup_steps=1", "optimizer.lr=0.3", "metrics.log_freq=3"),
)
VALIDATED = (
    "validation.sets.web={name: local, path: texts}",
    *("validation.interval=1", f"validation.tokens={TOKENS}"),
)
KEPT = (
    *("checkpoint.interval=1", "checkpoint.keep_latest_k=2", "checkpoint.async_mode=disabled"),
    *("checkpoint.keep_best=1", "checkpoint.keep_best_of=web"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def screen(atom: Callable, place: Path) -> str:
    result = atom("train", *SMALL, *VALIDATED, *KEPT, "run.dir=run", cwd=place)
    assert result.returncode == 0, result.stderr
    said: str = result.stdout
    return said


@pytest.fixture(scope="module")
def rows(screen: str, place: Path) -> list[StepMetrics]:
    assert screen
    return metrics.read(place / "run" / metrics.FILE_NAME)


def results(rows: list[StepMetrics]) -> dict[int, SetResult]:
    return dict(metrics.by_set(rows)["web"])


@pytest.mark.slow
def test_every_validated_step_is_logged_and_shown(screen: str, rows: list[StepMetrics]) -> None:
    found = results(rows)
    assert list(found) == [row.step for row in rows] == [1, 2, 3, 4]
    for result in found.values():
        assert (result.tokens, result.bytes) == (TOKENS, TOKENS)
        assert result.bits_per_byte == result.loss / math.log(2)
        assert f"web {result}" in screen
    assert f"validate web: every step, {TOKENS} tokens" in screen
    assert f"validation set web: 10 sequences, {TOKENS} tokens of text, {TOKENS} bytes" in screen
    assert len({result.loss for result in found.values()}) == 4


@pytest.mark.slow
def test_the_best_checkpoint_outlives_newer_ones(rows: list[StepMetrics], place: Path) -> None:
    losses = {step: found.loss for step, found in results(rows).items()}
    best = min(losses, key=lambda step: losses[step])
    assert best < 3, "the learning rate is to make the loss rise"
    kept = {int(path.name.removeprefix("step-")) for path in (place / "run/checkpoint").iterdir()}
    assert kept == {best, 3, 4}


@pytest.mark.slow
def test_transformers_has_the_same_loss(
    rows: list[StepMetrics], place: Path, atom: Callable
) -> None:
    """A plain loop over the exported model; the difference seen is 1e-6."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    exported = atom("export", "run", "--to", "hf", "--out", "out", cwd=place)
    assert exported.returncode == 0, exported.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "out").eval()
    ids = [BOS, *TEXT.encode()]
    nats = 0.0
    for begin in range(0, TOKENS, 64):
        inputs = torch.tensor([ids[begin : begin + 64]])
        labels = torch.tensor(ids[begin + 1 : begin + 65])
        with torch.no_grad():
            logits = model(inputs).logits[0].double()
        nats += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    assert results(rows)[4].loss == pytest.approx(nats / TOKENS, abs=1e-4)


@pytest.mark.slow
def test_a_checkpoint_is_validated_afterwards(
    rows: list[StepMetrics], place: Path, atom: Callable
) -> None:
    """On the set of the run, with the loss of its step; on any other; and a wrong one at once."""
    found = results(rows)
    told = json.loads(atom("validate", "run", "--step", "3", "--json", cwd=place).stdout)
    assert told["step"] == 3
    assert told["sets"]["web"]["loss"] == pytest.approx(found[3].loss, abs=1e-5)
    assert told["sets"]["web"]["data"] == found[3].data
    other = atom(
        *("validate", "run", "--tokens", "100"),
        *("--set", "same={name: local, path: texts}", "--set", "py=stdlib"),
        cwd=place,
    )
    assert other.returncode == 0, other.stderr
    table = [line.split() for line in other.stdout.splitlines()[2:]]
    assert [row[0] for row in table] == ["set", "same", "py"]
    assert [row[-2:] for row in table[1:]] == [["128", "128"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("py=stdlb", "validation.sets.py.name=stdlb: there is no dataset stdlb; did you mean"),
        ("py={name: local, paht: x}", "validation.sets.py.paht=x: paht is no key here"),
        ("py=[1]", "validation.sets.py=[1]: is no dataset; valid: a name, or {name: NAME"),
        ("stdlib", "atom validate: argument --set: 'stdlib' is not valid; valid: NAME=DATASET"),
    ],
)
def test_a_set_that_is_none_is_refused_before_torch(
    given: str, sentence: str, rows: list[StepMetrics], place: Path, forked: Callable
) -> None:
    assert rows
    result = forked("validate", "run", "--set", given, cwd=place)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"atom: {sentence}"), result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        (),
        ("parallelism=pp", "parallelism.pipeline_parallel_schedule=ZBVZeroBubble"),
    ],
    ids=["one rank", "ZBVZeroBubble"],
)
def test_training_is_the_same_without_validation(
    layout: tuple[str, ...], rows: list[StepMetrics], place: Path, atom: Callable
) -> None:
    """To the bit, and in a pipeline that torch does not evaluate, too."""
    assert rows
    runs = {}
    for name, overrides in (("with", VALIDATED), ("without", ())):
        if (name, layout) == ("with", ()):
            runs[name] = rows
            continue
        result = atom(
            *("train", *SMALL, *layout, *overrides, "metrics.log_freq=1", f"run.dir={name}"),
            *("checkpoint.enable=false",),
            cwd=place,
        )
        assert result.returncode == 0, result.stderr
        runs[name] = metrics.read(place / name / metrics.FILE_NAME)
        shutil.rmtree(place / name)
    there, here = (
        [(row.step, row.loss, row.grad_norm, row.data, row.tokens_seen) for row in runs[name]]
        for name in runs
    )
    assert there == here
    found, reference = results(runs["with"])[1], results(rows)[1]
    assert found.loss == pytest.approx(reference.loss, abs=2e-4)
    assert found.data == reference.data


@pytest.mark.slow
def test_what_is_held_out_is_never_trained_on(
    place: Path, atom: Callable, forked: Callable
) -> None:
    """On two ranks, over several epochs; and another fraction cannot resume."""
    texts = {f"{number}.txt": f"text {number} " * 8 for number in range(24)}
    (place / "many").mkdir()
    for name, text in texts.items():
        (place / "many" / name).write_text(text)
    held_out = {name for name, text in texts.items() if share(text) < 0.3}
    command = ("train", *SMALL, "dataset=local", "dataset.path=many", "run.dir=split")
    layout = ("parallelism=fsdp", "launch.ranks=2", "data.trace=true", "training.steps=12")
    result = atom(*command, *layout, "validation.fraction=0.3", cwd=place)
    assert result.returncode == 0, result.stderr
    trained = {
        (epoch, Path(name).name)
        for rank in range(2)
        for line in (place / f"split/logs/samples_rank_{rank}.jsonl").read_text().splitlines()
        for spans in json.loads(line)["lanes"].values()
        for epoch, name, *_ in spans
    }
    assert {name for _, name in trained} == texts.keys() - held_out
    assert {epoch for epoch, _ in trained} >= {0, 1}
    ((_, found),) = metrics.by_set(metrics.read(place / "split/metrics.jsonl"))["held_out"]
    assert found.tokens == sum(len(texts[name]) for name in held_out)
    other = forked(*command, "training.steps=13", "validation.fraction=0.2", cwd=place)
    assert (other.returncode, other.stdout) == (2, "")
    assert "holds checkpoints of a run with validation.fraction=0.3" in other.stderr
