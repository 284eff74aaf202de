"""``atom plan calibrate [RUN …]``: fit a device file to a machine."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml

from atom.cli import Parser
from atom.cli.plan_run import check_page
from atom.errors import UserError
from atom.io.files import write_given
from atom.io.process import call
from atom.plan import calibration
from atom.plan.calibration import Calibrated, Observation
from atom.plan.device import DeviceDescription
from atom.plan.work import work
from atom.recipe.run import Run, read
from atom.run_dir import metrics
from atom.run_dir.folder import RUN_FILE

STEPS, WARM_UP = 16, 4
SECONDS = 2.0
"""Of each measurement of products, memory and launches."""

_SMALL = (
    "architecture=llama3_tiny", "tokenizer=bytes", "dataset=stdlib", "metrics=none",
    "architecture.n_heads=4", "architecture.n_kv_heads=2", "checkpoint.enable=false",
    f"training.steps={STEPS}", "metrics.log_freq=1",
)  # fmt: skip

# Width, layers, tokens of a sequence, sequences, parallelism.
RECIPES: tuple[tuple[int, int, int, int, str], ...] = (
    (128, 2, 128, 4, "single"),
    (256, 4, 256, 4, "single"),
    (512, 2, 128, 4, "single"),
    (256, 2, 512, 2, "single"),
    (128, 4, 128, 4, "fsdp"),
    (384, 4, 256, 8, "fsdp"),
    (256, 2, 256, 4, "tp"),
    (512, 3, 128, 4, "fsdp"),
)
"""The runs of the benchmark, on one and on two ranks."""

LARGER = 16
"""Factor of widths, and of sequences' tokens, on a GPU."""


def parser() -> Parser:
    """Return the parser of the arguments of ``atom plan calibrate``."""
    parser = Parser(
        "atom plan calibrate",
        "Fit a device file to this machine: time products, memory, launches and collectives, train "
        "small models for a few steps, and fit the time model to them, or to finished runs of this "
        "machine. Takes up to five minutes.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN",
        help="folders of runs of this machine to fit to, instead of small models",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("device.yaml"),
        help="the device file to write; device.yaml by default",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N",
        help="ranks of the collectives and of the runs that have several; 2 by default",
    )  # fmt: skip
    return parser


def run(options: argparse.Namespace) -> int:
    """Fit the device, write its file, print how good it is; return the exit code."""
    check_page(options.out, key="--out")
    if options.out.suffix not in (".yaml", ".yml"):
        raise UserError("is no YAML file", key="--out", value=str(options.out), valid="FILE.yaml")
    if not 1 <= options.ranks <= 64:
        raise UserError(key="--ranks", value=options.ranks, valid="1 to 64")
    observed = [observation(folder) for folder in options.runs]
    device = call(partial(_measured, options.ranks))
    with tempfile.TemporaryDirectory() as folder:
        if not observed:
            for words in recipes(device.kind, options.ranks):
                print(f"training {' '.join(words)}", file=sys.stderr, flush=True)
                observed.append(trained(words, Path(folder)))
    found = calibration.fitted(device, observed)
    write_given(options.out, to_yaml(found, [one.name for one in observed]))
    print(page(found, observed))
    print(f"\natom plan … device={options.out}")
    return 0


def _measured(ranks: int) -> DeviceDescription:
    from atom.titan.boot import boot
    from atom.titan.compat import device

    kind = device.pick("auto")
    boot(kind)
    described = device.describe(kind)
    from atom.bench import machine

    dtypes = ("float32", "bfloat16")
    return machine.measured(described, dtypes, seconds=SECONDS, ranks=ranks)


def recipes(kind: str, ranks: int) -> list[tuple[str, ...]]:
    """Return the overrides of each run of the benchmark."""
    times = 1 if kind == "cpu" else LARGER
    return [
        overrides(width * times, layers, length * times, batch, parallelism, ranks)
        for width, layers, length, batch, parallelism in RECIPES
        if ranks > 1 or parallelism == "single"
    ]


def overrides(
    width: int, layers: int, length: int, batch: int, parallelism: str, ranks: int
) -> tuple[str, ...]:
    """Return the overrides of one run."""
    degrees = {
        "fsdp": (f"parallelism.data_parallel_shard_degree={ranks}",),
        "tp": (f"parallelism.tensor_parallel_degree={ranks}",),
    }
    return (
        f"architecture.dim={width}",
        f"architecture.n_layers={layers}",
        f"training.seq_len={length}",
        f"training.global_batch_size={batch}",
        f"parallelism={parallelism}",
        *degrees.get(parallelism, ()),
    )


def trained(words: tuple[str, ...], folder: Path) -> Observation:
    """Train a small model; return its steps.

    Raises:
        UserError: it fails.
    """
    place = folder / f"run_{len(list(folder.iterdir()))}"
    command = [sys.executable, "-P", "-m", "atom", "train", *_SMALL, *words, f"run.dir={place}"]
    # One thread a rank, with one and with several: a rank is the device that is fitted.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise UserError(f"a run of the benchmark failed: {why}")
    return observation(place)


def observation(folder: Path) -> Observation:
    """Return the steps of a run, without its first ones.

    Raises:
        UserError: the folder holds no run, or too few steps.
    """
    run = read(folder / RUN_FILE, below=folder)
    rows = metrics.read(folder / metrics.FILE_NAME)[WARM_UP:]
    if len(rows) < 3 or run.resolved is None:
        raise UserError(f"{folder} has {len(rows)} steps after the first {WARM_UP}", valid="3")
    seconds = statistics.median(row.step_seconds for row in rows)
    return call(partial(_observed, folder.name, run, seconds))


def _observed(name: str, run: Run, seconds: float) -> Observation:
    from atom.titan.planning.of_run import estimate_of_run

    known = estimate_of_run(run)
    return Observation(name, work(known.model), known.estimate.layout, seconds)


def to_yaml(found: Calibrated, names: list[str]) -> str:
    """Return the device file."""
    device = found.device
    keys = (
        "kind", "capability", "flops", "products", "memory_bandwidth", "node_bandwidth", "latency",
        "network_bandwidth", "devices_per_node", "reserve", "multiprocessors", "constants",
    )  # fmt: skip
    values = {key: getattr(device, key) for key in keys}
    values["capability"] = list(device.capability) if device.capability else None
    values["memory_gib"] = round(device.memory / 2**30, 2)
    values |= {
        key: getattr(device, key) for key in ("power", "power_limit") if getattr(device, key)
    }
    values["error"] = max(float(f"{max(map(abs, found.after)):.3g}"), 1e-3)
    values = {key: value for key, value in values.items() if value not in (0.0, {})}
    head = (
        f"# Fitted by atom plan calibrate to {len(names)} runs: median error "
        f"{calibration.typical(found.after):.1%}, worst {max(map(abs, found.after)):.1%}.\n"
    )
    return head + yaml.safe_dump(values, sort_keys=False)


def page(found: Calibrated, observed: list[Observation]) -> str:
    """Return a line for each run, and the median error."""
    lines = [
        f"{run.name:12} {run.seconds:9.4f} s a step, predicted {run.seconds * (1 + after):9.4f} "
        f"({after:+.1%}; {before:+.0%} before the fit)"
        for run, before, after in zip(observed, found.before, found.after, strict=True)
    ]
    lines.append(f"median error {calibration.typical(found.after):.1%}")
    return "\n".join(lines)
