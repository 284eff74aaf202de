"""Measure what the callbacks of ``atom-diagnostics`` cost.

    python benchmarks/diagnostics.py [--steps 60] [--dim 128] [--layers 4] [--seq-len 256]

A run per callback trains a small Llama (for ``experts`` a Qwen3 with experts) on one rank of the
CPU, and measures every second step. The steps between are the same run's, so other load of the
machine meets both. A callback that comes first reads the processor time of the process.

The cost of a measurement is the difference of the medians of measured and other steps. The table
shows it, and its share of the steps at an interval of 10. The last run has no callback that
measures: every second of its steps is compared with the others, which shows what is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from atom.testing.installing import describe

INTERVAL = 10
CALLBACKS = ("norms", "attention", "experts", "histograms", "")

CLOCK = {
    "__init__.py": """
from atom.plugin import Callback, hookimpl

@hookimpl
def atom_callbacks():
    yield Callback(
        name="clock", summary="processor time of steps", callback="clock.code:callback"
    )
""",
    "code.py": """
import json
import time
from atom.plugin import TrainerCallback

def callback(config, context):
    return Clock()

class Clock(TrainerCallback):
    def __init__(self):
        self.times = []

    def before_step(self, training):
        self.times.append(time.process_time())

    def close(self, training):
        place = training.run_dir / "callbacks" / "clock"
        place.mkdir(parents=True, exist_ok=True)
        (place / "times.json").write_text(json.dumps(self.times))
""",
}


def measured(callback: str, place: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Train with a callback; return the seconds of a step, and those that a measurement adds."""
    model = "qwen3_tiny_moe" if callback == "experts" else "llama3_tiny"
    run = place / (callback or "none")
    command = [sys.executable, "-m", "atom", "train", f"architecture={model}", f"run.dir={run}"]
    command += [f"architecture.dim={options.dim}", f"architecture.n_layers={options.layers}"]
    command += [f"training.seq_len={options.seq_len}", f"training.steps={options.steps}"]
    command += ["training.global_batch_size=4", "tokenizer=bytes", "device=cpu", "metrics=none"]
    command += ["checkpoint.enable=false", "callbacks.clock={name: clock}"]
    if callback:
        command += [f"callbacks.measured={{name: {callback}, interval: 2}}"]
    environment = os.environ | {"PYTHONPATH": str(place / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    times = json.loads((run / "callbacks/clock/times.json").read_text())
    steps = [after - before for before, after in pairwise(times)]
    others, measuring = steps[4::2], steps[5::2]  # of steps 5, 7, … and 6, 8, …
    usual = statistics.median(others)
    return usual, statistics.median(measuring) - usual


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    options = parser.parse_args()
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("atom-train", "torch"))
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {versions}; "
        f"dim {options.dim}, {options.layers} layers, 4 sequences of {options.seq_len} tokens, "
        f"{options.steps} steps\n"
    )
    print("| callback | a step | a measurement | share at interval 10 |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        describe(place / "site", "clock")
        for name, text in CLOCK.items():
            file = place / "site" / "clock" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for callback in CALLBACKS:
            usual, added = measured(callback, place, options)
            share = added / INTERVAL / usual
            name = f"`{callback}`" if callback else "none"
            print(f"| {name} | {usual:.4f} s | {added:+.4f} s | {share:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
