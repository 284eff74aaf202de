"""``atom average``: the mean of checkpoints, as a run that other commands accept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from families import FAMILIES, LLAMA, saver
from resumed import TINY
from safetensors.torch import load_file

from atom import cli
from atom.io.files import sha256
from atom.run_dir import claim
from atom.titan import saved_model
from atom.titan.checkpoint.dcp import AtomicWriter
from atom.titan.saved_model import Checkpoint
from atom.titan.weights.export import export

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]

SET = "held={name: local, path: texts}"


def weights(folder: Path, step: int) -> State:
    source = Checkpoint(folder / f"checkpoint/step-{step}")
    model = saved_model.on_meta(saved_model.trained(folder).parts.model)
    return {name: source.read(name) for name in model.state_dict()}


def save(folder: Path, step: int, state: State) -> None:
    writer = AtomicWriter(folder / "checkpoint", step, model_only=True)
    dcp.save(state, storage_writer=writer, no_dist=True)


def add_steps(folder: Path, *steps: int) -> None:
    """Save checkpoints of other values, with numbers of very different sizes among them."""
    state = weights(folder, 3)
    for step in steps:
        torch.manual_seed(step)
        save(folder, step, {n: v + torch.randn(v.shape) ** 9 for n, v in state.items()})


def exported(folder: Path, out: Path, step: int | None = None) -> State:
    export(folder, out, step=step)
    return load_file(out / "model.safetensors")


def mean(states: Sequence[State], weights: Sequence[int]) -> State:
    """Return the mean of float32 weights as torch computes it in float64."""
    found = {}
    for name in states[0]:
        copies = [state[name] for state, n in zip(states, weights, strict=True) for _ in range(n)]
        found[name] = torch.stack(copies).double().mean(dim=0).float()
    return found


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", ["llama3", "qwen3, tied", "deepseek_v3"])
def test_mean_of_exported_weights(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saver(tmp_path)(FAMILIES[family])
    add_steps(folder, 7, 5)
    out = tmp_path / "mean"
    steps = (7, 3, 5)
    arguments = ["--steps", "7,3,5", "--weights", "1,2,1", "--out", str(out)]
    assert cli.main(["average", str(folder), *arguments]) == 0
    shown, _ = capfd.readouterr()
    assert shown.startswith("step 7: the mean of 3 checkpoints, ")
    states = [exported(folder, tmp_path / f"hf{step}", step) for step in steps]
    assert same(exported(out, tmp_path / "hf"), mean(states, (1, 2, 1)))
    record = json.loads((out / "average.json").read_text())
    assert record["checkpoints"] == [
        {
            "run": str(folder),
            "step": step,
            "manifest_sha256": sha256(folder / f"checkpoint/step-{step}/manifest.json"),
            "weight": weight,
        }
        for step, weight in zip(steps, (1.0, 2.0, 1.0), strict=True)
    ]
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["step-7"]
    assert (out / "run.yaml").read_bytes() == (folder / "run.yaml").read_bytes()
    manifest = json.loads((out / "checkpoint/step-7/manifest.json").read_text())
    assert manifest["model_only"]


def test_runs_at_their_newest_or_at_a_step(runs: Path) -> None:
    assert cli.main(["average", "run@3", "run@4", "soup", "--out", "mean"]) == 0
    states = [weights(runs / name, step) for name, step in (("run", 3), ("run", 4), ("soup", 6))]
    assert same(weights(runs / "mean", 6), mean(states, (1, 1, 1)))
    assert cli.main(["average", "run", "soup", "--weights", "0,1e300", "--out", "second"]) == 0
    assert same(weights(runs / "second", 6), states[2])


def test_dtype_is_that_of_the_checkpoints(runs: Path) -> None:
    """Rounded once: torch sums bfloat16 in float32, which is exact for two such numbers."""
    assert cli.main(["average", "half@8", "half@9", "--out", "mean"]) == 0
    a, b = weights(runs / "half", 8), weights(runs / "half", 9)
    rounded = {name: torch.stack([a[name], b[name]]).mean(dim=0) for name in a}
    found = weights(runs / "mean", 9)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert same(found, rounded)


# ---------------------------------------------------------------------------- commands


def test_checkpoints_of_three_layouts(atom: Callable, tmp_path: Path) -> None:
    """One run under FSDP, TP and PP; what commands do with the mean of its checkpoints."""

    def said(*arguments: str) -> str:
        result = atom(*arguments, cwd=tmp_path, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        return str(result.stdout)

    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / f"texts/{number}.txt").write_text(f"text {number} has words " * 30)
    tiny = ("train", *TINY, "dataset.path=texts", "launch.ranks=2")
    for step, layout in enumerate(("fsdp", "tp", "pp"), 1):
        said(*tiny, f"parallelism={layout}", f"training.steps={step}", "run.dir=run")
    said("average", "run", "--steps", "1,2,3", "--out", "mean")
    states = [weights(tmp_path / "run", step) for step in (1, 2, 3)]
    assert not same(states[0], states[2])
    averaged = mean(states, (1, 1, 1))
    assert same(weights(tmp_path / "mean", 3), averaged)

    said("export", "mean", "--to", "hf", "--out", "hf")
    validated = [
        json.loads(said("validate", place, "--set", SET, "--tokens", "256", "--json"))
        for place in ("mean", "hf")
    ]
    ours, theirs = (found["sets"]["held"] for found in validated)
    assert (validated[0]["step"], validated[1]["step"]) == (3, None)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    words = ("abc", "--tokens", "4", "--temperature", "0")
    assert said("generate", "mean", *words) == said("generate", "hf", *words)

    start = ("checkpoint.initial_load=mean", "optimizer.lr=1e-30", "training.steps=1")
    said(*tiny, "parallelism=tp", *start, "run.dir=next")
    assert same(weights(tmp_path / "next", 1), averaged), "a step this small changes nothing"


# ---------------------------------------------------------------------------- mistakes

MISTAKES: dict[str, tuple[str, str]] = {
    "no folder": ("nowhere run", "nowhere: there is no such folder"),
    "no run": ("empty run", "empty holds no run.yaml"),
    "one checkpoint": ("run", "needs two checkpoints or more"),
    "one step": ("run --steps 3", "needs two checkpoints or more"),
    "no step": ("run --steps 3,7", "run holds no checkpoint of step 7; valid: 3, 4"),
    "no step of a soup": ("run@7 soup", "run holds no checkpoint of step 7; valid: 3, 4"),
    "steps of several runs": ("run soup --steps 3,4", "--steps is for one run; valid: RUN@STEP"),
    "steps and a step": ("run@3 --steps 3,4", "--steps is for one run; valid: RUN@STEP"),
    "not steps": ("run --steps 3,x", "argument --steps: '3,x' is not valid; valid: steps"),
    "negative step": ("run --steps=3,-4", "argument --steps: '3,-4' is not valid"),
    "a step twice": ("run --steps 3,4,3", "run/checkpoint/step-3 is given twice"),
    "newest twice": ("run run@4", "run/checkpoint/step-4 is given twice"),
    "by a link": ("run link@4", "link/checkpoint/step-4 is given twice"),
    "a copy": ("run@3 copy@3", "run/checkpoint/step-3 and copy/checkpoint/step-3 are the same"),
    "too few weights": ("run --steps 3,4 --weights 1", "1 numbers for 2 checkpoints; valid: one"),
    "too many weights": ("run soup --weights 1,1,1", "3 numbers for 2 checkpoints; valid: one"),
    "negative weight": ("run soup --weights=1,-1", "'1,-1' is not valid; valid: finite numbers"),
    "weight of NaN": ("run soup --weights 1,nan", "'1,nan' is not valid; valid: finite numbers"),
    "infinite weight": ("run soup --weights 1,inf", "'1,inf' is not valid; valid: finite numbers"),
    "no number": ("run soup --weights 1,", "'1,' is not valid; valid: finite numbers"),
    "weights of zero": ("run soup --weights 0,0", "add up to a finite number above 0"),
    "endless weights": ("run soup --weights 1e308,1e308", "add up to a finite number above 0"),
    "out in use": ("run soup --out full", "--out full is not empty; valid: a new or empty folder"),
    "out is a file": ("run soup --out full/file", "--out full/file is a file"),
    "out in a run": ("run soup --out soup/checkpoint/step-9", "is in the run folder soup"),
    "no out": ("run soup --out", "argument --out"),
    "file missing": ("run damaged", "damaged/checkpoint/step-6 is damaged: __0_0.distcp has"),
    "file altered": ("run altered", "altered/checkpoint/step-6 is damaged: __0_0.distcp has other"),
    "Hugging Face's": ("run last", "last/checkpoint/step-9 is in Hugging Face's format; others: 6"),
    "another size": (
        "run wide",
        "is of another model than run/checkpoint/step-4: architecture.dim is 128 there and 64 here",
    ),
    "another architecture": ("run qwen", "architecture.name is qwen3 there and llama3 here"),
    "another tokenizer": ("run words", "tokenizer.name is bpe there and bytes here"),
    "other files of the tokenizer": ("run@3 told other", "other files of the tokenizer than told/"),
    "another dtype": ("run half", "is bfloat16 there and float32 here"),
    "a weight missing": ("run lacking", "1 of its 21 weights are missing, such as norm.weight"),
    "NaN": ("run nan", "nan/checkpoint/step-5 has NaN or infinity in norm.weight"),
    "hostile": ("run hostile", "hostile holds a link that leads out of it"),
    "at work": ("run busy", "busy: a job is at work in it (process"),
}


def _inputs(folder: Path, digest: str) -> None:
    content = {name: {"digest": digest} for name in ("dataset", "tokenizer")}
    (folder / "inputs.json").write_text(json.dumps(content))


def _made(place: Path) -> None:
    """Write runs, whole and not."""
    make = saver(place)
    add_steps(make(LLAMA), 4)
    make(LLAMA | {"dim": 128}, "wide")
    make(FAMILIES["qwen3, tied"], "qwen")

    def copied(name: str, of: str = "soup") -> Path:
        return Path(shutil.copytree(place / of, place / name))

    shutil.move(copied("copy", "run") / "checkpoint/step-4", place / "spare")
    shutil.copytree(place / "run", place / "soup", ignore=shutil.ignore_patterns("step-*"))
    state = weights(place / "run", 3)
    save(place / "soup", 6, {name: values * 3 for name, values in state.items()})
    for name in ("damaged", "altered"):
        (file,) = (copied(name) / "checkpoint/step-6").glob("*.distcp")
        content = file.read_bytes()
        file.write_bytes(content[:-1] + (b"" if name == "damaged" else bytes([content[-1] ^ 1])))
    for name, digest in (("told", "a"), ("other", "b")):
        _inputs(copied(name), digest * 64)
    save(place / "told", 7, {name: values * 2 for name, values in state.items()})
    save(place / "other", 8, {name: values * 4 for name, values in state.items()})
    described = copied("words") / "run.yaml"
    described.write_text(described.read_text().replace("name: bytes", "name: bpe"))
    save(place / "words", 7, {name: values * 5 for name, values in state.items()})
    half = {name: values.bfloat16() for name, values in state.items()}
    save(copied("half"), 8, half)
    save(place / "half", 9, {name: values * 1.7 for name, values in half.items()})
    save(copied("lacking"), 7, {n: v for n, v in state.items() if n != "norm.weight"})
    nan = {name: values.clone() for name, values in state.items()}
    nan["norm.weight"][3] = torch.nan
    shutil.rmtree(copied("nan") / "checkpoint/step-6")
    save(place / "nan", 5, nan)
    (copied("last") / "checkpoint/step-9").mkdir()
    (place / "last/checkpoint/step-9/model.safetensors.index.json").write_text("{}")
    (copied("hostile") / "tokenizer").symlink_to("/etc")
    copied("busy")
    (place / "link").symlink_to("run")
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full/file").touch()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    _made(place)
    return place


@pytest.fixture
def runs(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    for name in ("mean", "second"):
        shutil.rmtree(made / name, ignore_errors=True)
    return made


def test_mistakes_are_one_sentence(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, either."""
    claim.claim(runs / "busy")
    try:
        # This process holds the lock, as another one would: the commands open the file anew.
        before = sorted(runs.rglob("*"))
        for case, (command, says) in MISTAKES.items():
            words = command.split()
            out = [] if "--out" in words else ["--out", "new"]
            assert cli.main(["average", *words, *out]) == 2, case
            shown, sentence = capfd.readouterr()
            assert not shown, case
            assert sentence.startswith("atom: "), case
            assert sentence.count("\n") == 1, sentence
            assert says in sentence, f"{case}: {sentence}"
        assert sorted(runs.rglob("*")) == before
    finally:
        claim._held.pop((runs / "busy").resolve())


def test_no_run_trains_in_an_average(runs: Path, forked: Callable) -> None:
    assert cli.main(["average", "run", "soup", "--out", "mean"]) == 0
    before = sorted((runs / "mean").rglob("*"))
    result = forked("train", "tokenizer=bytes", "run.dir=mean", cwd=runs)
    assert result.returncode == 2
    assert result.stderr == (
        "atom: run.dir=mean (command line): holds an average of checkpoints, which no run can "
        "resume from; valid: another run.dir, with checkpoint.initial_load=mean\n"
    )
    assert sorted((runs / "mean").rglob("*")) == before


def test_a_disk_that_is_full_leaves_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atom.titan.checkpoint.dcp.sha256", full)
    assert cli.main(["average", "run", "soup", "--out", "mean"]) == 1
    assert capfd.readouterr().err == "atom: No space left on device\n"
    assert not list(runs.glob("*mean*"))
