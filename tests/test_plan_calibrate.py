"""``atom plan calibrate``: fit a device to runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atom.bench import machine
from atom.cli.plan_calibrate import RECIPES, recipes, to_yaml
from atom.plan import calibration, errors
from atom.plan.calibration import Observation
from atom.plan.device import DeviceDescription, named
from atom.plan.execution import Execution
from atom.plan.layout import Layout
from atom.plan.time.step import step
from atom.plan.transformer import transformer


def observed(device: DeviceDescription) -> list[Observation]:
    """Return what ``device`` would measure in the benchmark's runs."""
    found = []
    for width, layers, length, batch, parallelism in RECIPES:
        dims = {
            "layers": layers, "dim": width, "heads": 4, "kv_heads": 2, "ffn_dim": 3 * width,
            "vocab": 260,
        }  # fmt: skip
        work = transformer(dims)
        shards = 2 if parallelism == "fsdp" else 1
        layout = Layout(
            dp_shard=shards,
            tp=2 if parallelism == "tp" else 1,
            seq_len=length,
            local_batch_size=batch // shards,
            stages=((*work.blocks, "lm_head"),),
            execution=Execution(products="float32"),
        )
        seconds = step(work, layout, device).seconds
        found.append(Observation(parallelism, work, layout, seconds))
    return found


def test_a_planted_machine_is_found() -> None:
    """From a benchmark that errs by half, the fit predicts the machine within 3 %."""
    plain = named("cpu")
    truth = replace(
        plain,
        products={"float32": 25e9},
        memory_bandwidth=5e9,
        node_bandwidth=0.9e9,
        latency=2e-4,
        constants={"contention": 1.0, "launch": 4e-5, "step": 0.03, "flash2_a100": 0.2},
    )
    benchmark = replace(
        plain, products={"float32": 35e9}, memory_bandwidth=8e9, node_bandwidth=2e9, latency=4e-4
    )
    runs = observed(truth)
    found = calibration.fitted(benchmark, runs)
    assert calibration.typical(found.before) > 0.1
    assert max(map(abs, found.after)) < 0.03
    assert (found.device.products or {})["float32"] == pytest.approx(25e9, rel=0.15)


def test_the_written_file_is_the_device(tmp_path: Path) -> None:
    runs = observed(named("cpu"))
    found = calibration.fitted(named("cpu"), runs)
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(found, [run.name for run in runs]))
    again = named(str(file))
    assert calibration.errors(again, runs) == pytest.approx(found.after, abs=1e-6)
    low, high = errors.spread(runs[0].layout, again)
    assert errors.class_of(runs[0].layout, again) == "calibrated"
    assert low == pytest.approx(1 / high)
    assert high - 1 == pytest.approx(max(*map(abs, found.after), 1e-3), rel=0.01)
    assert replace(again, name="cpu", memory=0, error=0.0) == replace(found.device, memory=0)


def test_one_rank_trains_no_run_of_several() -> None:
    assert {words[4] for words in recipes("cpu", 1)} == {"parallelism=single"}
    assert len(recipes("cpu", 2)) == len(RECIPES)


WRONG = {
    "--out nowhere/d.yaml": "--out=nowhere/d.yaml: there is no folder",
    "--out d.txt": "--out=d.txt: is no YAML file; valid: FILE.yaml",
    "--ranks 0": "--ranks=0: valid: 1 to 64",
    "nowhere": "nowhere",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_calibrations_are_refused(forked: Callable, tmp_path: Path, words: str) -> None:
    done = forked("plan", "calibrate", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert WRONG[words] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("constants: {lunch: 1.0}", "unknown constant constants.lunch; did you mean launch?"),
        ("constants: {launch: -1.0}", "has constants.launch: -1.0; valid: a number above 0"),
        ("latency: 0", "has latency: 0; valid: a number above 0"),
        ("speed: 3", "has the unknown key speed"),
    ],
)
def test_wrong_device_files_are_refused(
    forked: Callable, tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"like: cpu\n{line}\n")
    done = forked("plan", "budget=1e20", f"device={file}")
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.slow
def test_a_machine_is_measured_and_a_run_is_planned_beside_it(
    atom: Callable, tmp_path: Path
) -> None:
    latency, bandwidth = machine.collectives("cpu", 2)
    assert 1e-6 < latency < 1
    assert 1e6 < bandwidth < 1e12
    place = tmp_path / "run"
    small = (
        "architecture=llama3_tiny", "tokenizer=bytes", "device=cpu", "metrics=none",
        "architecture.n_layers=2", "architecture.dim=64", "training.seq_len=64",
        "training.global_batch_size=4", "training.steps=8", "profile.steps=6-7",
        "parallelism=single",
    )  # fmt: skip
    done = atom("train", *small, f"run.dir={place}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "mine.yaml"
    done = atom("plan", "calibrate", str(place), "--out", str(file), "--ranks", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "median error" in done.stdout
    assert named(str(file)).kind == "cpu"
    page = tmp_path / "report.html"
    done = atom("report", str(place), "--device", str(file), "--out", str(page), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert ">Planned and measured</h2>" in text
    for name in ("a step, s", "computing, s", "memory of a rank, GiB", "goodput"):
        assert f"<td>{name}</td>" in text
    assert "Planned for 1 x mine" in text
    # The file was fitted to this run, so the plan of a step is as it was.
    steps = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])["step_seconds"]
    assert steps > 0
