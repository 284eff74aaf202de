"""Runs that validate: results, checkpoints, refusals, and training that stays the same."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.run_dir import metrics
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.validated import SetResult

BOS = 256


def share(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(digest, "little") / 2**64


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
    ranks = ("--layout", "dp_shard=2", "--tokens", "300", "--device", "cpu", "--json")
    shared, alone = (
        json.loads(atom("validate", "run", *words, cwd=place).stdout)["sets"]["web"]
        for words in (ranks, ranks[2:])
    )
    assert shared.pop("loss") == pytest.approx(alone.pop("loss"), abs=1e-5)
    assert shared["tokens"] == alone["tokens"] == 320, "five sequences for two ranks"
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
def test_two_tokenizers_are_compared_by_bits_per_byte(
    rows: list[StepMetrics], place: Path, atom: Callable
) -> None:
    """Of all of the same text: losses are per token, of which one tokenizer has fewer."""
    assert rows
    whole = atom("validate", "run", "--tokens", "100000", "--json", cwd=place)
    of_bytes = json.loads(whole.stdout)["sets"]["web"]
    bpe = ("tokenizer=bpe", "tokenizer.vocab_size=512", "tokenizer.train_bytes=100000")
    once = ("training.steps=1", "lr_scheduler.warmup_steps=0", "validation.tokens=100000")
    run = ("run.dir=bpe", "checkpoint.enable=false")
    result = atom("train", *SMALL, *VALIDATED, *bpe, *once, *run, cwd=place)
    assert result.returncode == 0, result.stderr
    ((_, of_bpe),) = metrics.by_set(metrics.read(place / "bpe" / metrics.FILE_NAME))["web"]
    length = len(TEXT.encode())
    assert of_bytes["bytes"] == of_bytes["tokens"] == of_bpe.bytes == length
    assert of_bpe.tokens < length
    bits = of_bpe.loss * of_bpe.tokens / math.log(2)
    assert of_bpe.bits_per_byte == pytest.approx(bits / length, rel=1e-12)
    assert of_bytes["bits_per_byte"] == pytest.approx(of_bytes["loss"] / math.log(2), rel=1e-12)
    compared = atom("compare", "run", "bpe", cwd=place).stdout
    (line,) = [words for words in compared.splitlines() if words.startswith("web bits/byte")]
    assert line.split()[-1] == f"{of_bpe.bits_per_byte:.4f}"


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
