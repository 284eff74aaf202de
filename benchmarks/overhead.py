"""Measure ATOM's overhead: the same job with torchtitan's own trainer and with ``atom train``.

    python benchmarks/overhead.py [--pairs 3] [--steps 20] [--layout fsdp2|tp2|4d] [--calls]

Both train the same model, on the same sequences, in the same layout, on a CPU, alternately.
torchtitan is started by torchrun with a Python configuration (``torchtitan_job.py``). It needs
ATOM's repairs to train on a CPU, and uses ATOM's data loader, so that the difference is what ATOM
adds: composition, plugins, the launcher, metrics and logs.

The output shows ratios ATOM / torchtitan: seconds from the command to the first finished step,
median seconds per step, and processor seconds per step over all processes, which depend least on
other load of the machine.

``--calls`` times nothing, and counts the Python calls of a step in the training thread of a rank,
which do not depend on the load at all: ``overhead_parts/sitecustomize.py``.
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
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from unittest import mock

JOB = Path(__file__).with_name("torchtitan_job.py")

LAYOUTS = {
    "fsdp2": {"data_parallel_shard_degree": 2},
    "tp2": {"data_parallel_shard_degree": 1, "tensor_parallel_degree": 2},
    "4d": {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "context_parallel_degree": 2,
        "pipeline_parallel_microbatch_size": 2,
    },
}


@dataclass(frozen=True)
class Timing:
    """Seconds from the command to the first finished step, and of each later step.

    ``processor`` is the processor time per step in seconds, summed over all processes, between the
    first step and the last.
    """

    first_step: float
    steps: list[float]
    processor: float
    losses: list[float]

    @property
    def step(self) -> float:
        return statistics.median(self.steps)


def measure(command: list[str], rows: Path) -> Timing:
    """Run ``command`` to its end; ``rows`` is the metrics file that it appends to."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.perf_counter()
    log = rows.parent.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            time.sleep(0.005)
        first = time.perf_counter() - begin
        begun = ended = (1, processor_seconds(process.pid))
        while process.poll() is None:
            # Ranks that have exited after the last step are no longer counted.
            now = (len(rows.read_text().splitlines()), processor_seconds(process.pid))
            if now[0] > ended[0] and now[1] > ended[1]:
                ended = now
            time.sleep(0.05)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-3000:]}")
    table = [json.loads(line) for line in rows.read_text().splitlines()]
    return Timing(
        first,
        [row["step_seconds"] for row in table[2:]],
        (ended[1] - begun[1]) / (ended[0] - begun[0]),
        [row["loss"] for row in table],
    )


def processor_seconds(ancestor: int) -> float:
    """Return the processor time of a process and its descendants."""
    times, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        times[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(times.get(pid, 0.0) for pid in family)


def atom(folder: Path, layout: dict[str, int], steps: int) -> Timing:
    overrides = [f"parallelism.{name}={value}" for name, value in layout.items()]
    command = [
        *(sys.executable, "-m", "atom", "train", f"run.dir={folder}", "device=cpu"),
        *("architecture=llama3_tiny", "tokenizer=bytes", "dataset=stdlib", "kernels=reference"),
        # As torchtitan's: the reference steps each parameter by itself.
        "kernels.optimizer_step=fused",
        *("parallelism=single", f"training.steps={steps}", "metrics.enable_tensorboard=false"),
        *("checkpoint.enable=false", "lr_scheduler.warmup_steps=2"),
        *overrides,
    ]
    return measure(command, folder / "metrics.jsonl")


def torchtitan(folder: Path, layout: dict[str, int], steps: int) -> Timing:
    ranks = 1
    for name, value in layout.items():
        ranks *= value if name.endswith("_degree") else 1
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={ranks}", str(JOB), str(folder), json.dumps(layout), str(steps)),
    ]
    return measure(command, folder / "metrics.jsonl")


def calls(job: Callable[[Path, dict[str, int], int], Timing], layout: dict[str, int]) -> int:
    """Return the Python calls of a step of ``job``; the most of all ranks."""
    with tempfile.TemporaryDirectory() as scratch:
        counting = {"COUNTED": f"{scratch}/calls", "PYTHONPATH": str(JOB.parent / "overhead_parts")}
        with mock.patch.dict(os.environ, counting):
            job(Path(scratch, "run"), layout, 12)
        # The first steps compile, import and fill caches.
        steps = [file.read_text().split()[-4:] for file in Path(scratch).glob("calls.*")]
    return max(round(statistics.median(map(int, rank))) for rank in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, by turns")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of a run; the first two are left out"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="tp2")
    parser.add_argument("--calls", action="store_true", help="count Python calls; time nothing")
    options = parser.parse_args()
    layout = LAYOUTS[options.layout]

    if options.calls:
        count, other = calls(atom, layout), calls(torchtitan, layout)
        print(f"layout: {options.layout}")
        print(f"Python calls of a step: atom {count}, torchtitan {other}: {count / other:.3f}")
        return

    pairs: list[tuple[Timing, Timing]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.pairs):
            theirs = torchtitan(Path(scratch, f"torchtitan{number}"), layout, options.steps)
            ours = atom(Path(scratch, f"atom{number}"), layout, options.steps)
            if any(abs(a - b) > 1e-4 for a, b in zip(ours.losses, theirs.losses, strict=True)):
                sys.exit(f"not the same job: losses {ours.losses} and {theirs.losses}")
            pairs.append((ours, theirs))
            print(
                f"pair {number + 1}, atom / torchtitan: "
                f"first step {ours.first_step:.1f} s / {theirs.first_step:.1f} s, "
                f"step {ours.step:.3f} s / {theirs.step:.3f} s, "
                f"processor {ours.processor:.3f} s / {theirs.processor:.3f} s",
                flush=True,
            )

    def pooled(whose: int) -> float:
        return statistics.median(second for pair in pairs for second in pair[whose].steps)

    def ratio(name: str) -> str:
        ratios = sorted(getattr(ours, name) / getattr(theirs, name) for ours, theirs in pairs)
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"

    versions = ", ".join(
        f"{p} {metadata.version(p)}" for p in ("atom-train", "torch", "torchtitan")
    )
    cores = len(os.sched_getaffinity(0))
    print(f"\n{date.today()}, {platform.machine()}, {cores} cores, {versions}")
    print(f"layout: {options.layout}")
    print(f"time to first step, atom / torchtitan: {ratio('first_step')}")
    print(f"time of a step, atom / torchtitan: {ratio('step')}")
    print(f"the same, of the medians of all runs' steps: {pooled(0) / pooled(1):.3f}")
    print(f"processor time of a step, atom / torchtitan: {ratio('processor')}")


if __name__ == "__main__":
    main()
