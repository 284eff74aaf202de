"""Measure what a run loses to faults, and what background checkpoints cost.

    python benchmarks/reliability.py [--faults kill hang …] [--ranks 2] [--steps 40] [--times 3]
        [--seed 0] [--save-steps 60] [--write FILE.md]

The real command trains a small model on CPU ranks. For each kind of fault, one run gets ``times``
faults at seeded random steps. A fault is survived if the run completes, and the losses of all steps
are bitwise equal to those of an undisturbed run. Steps lost are repeated steps. The recovery time
lasts from the fault until the first step that had not been done before.

The cost of saving is measured in a run of a wider model with a background checkpoint every 10
steps: the seconds from the end of the saved step to the end of the next, and the mean over all
steps, both compared with steps during which nothing is saved.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
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

from atom.run_dir import checkpoint, metrics, status

MODEL = (
    *("architecture=llama3_tiny", "architecture.dim=64", "tokenizer=bytes", "training.seq_len=64"),
    *("parallelism=fsdp", "device=cpu", "metrics.enable_tensorboard=false"),
)
INTERVAL = 5
SAVING = 10
HANG_SECONDS = 10
PATIENCE = 600


@dataclass
class Result:
    """Results of one kind of fault: number, survived, steps lost, and seconds to recover."""

    injected: int
    survived: bool
    steps_lost: int
    seconds: list[float]


class Job:
    """A running ``atom train`` in a folder; the same command resumes it."""

    def __init__(self, place: Path, *overrides: str) -> None:
        self.place = place
        self._command = [sys.executable, "-m", "atom", "train", *MODEL, f"run.dir={place}"]
        self._command += overrides
        self.start()

    def start(self) -> None:
        self._said = self.place.with_suffix(".log").open("a")
        self.process = subprocess.Popen(
            self._command,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks: the launcher's child has a child that forks them."""
        parents = [self.process.pid]
        for _ in range(3):
            parents = [child for parent in parents for child in _children(parent)]
        return sorted(parents)

    def step(self) -> int:
        return metrics.last_step(self.place / metrics.FILE_NAME)

    def wait_for_step(self, step: int) -> float:
        """Wait until ``step`` is done; return the time when that was seen."""
        deadline = time.monotonic() + PATIENCE
        while self.step() < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"ended or stuck at step {self.step()}:\n{self.said()}")
            time.sleep(0.02)
        return time.monotonic()

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        self._said.close()
        return code

    def said(self) -> str:
        return self.place.with_suffix(".log").read_text()[-2000:]


def _children(parent: int) -> list[int]:
    try:
        threads = Path(f"/proc/{parent}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
    except OSError:
        return []


def kill_a_rank(job: Job, chance: random.Random) -> None:
    os.kill(chance.choice(job.ranks()), signal.SIGKILL)


def hang_a_rank(job: Job, chance: random.Random) -> None:
    os.kill(chance.choice(job.ranks()), signal.SIGSTOP)


def kill_the_launcher(job: Job, _chance: random.Random) -> None:
    ranks = job.ranks()
    os.kill(job.process.pid, signal.SIGKILL)
    job.end()
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        time.sleep(0.02)
    job.start()


def preempt(job: Job, _chance: random.Random) -> None:
    os.kill(job.process.pid, signal.SIGTERM)
    if job.end() != 75:
        sys.exit(f"no exit code 75:\n{job.said()}")
    job.start()


def damage_the_newest_checkpoint(job: Job, chance: random.Random) -> None:
    ranks = job.ranks()
    os.kill(job.process.pid, signal.SIGKILL)
    job.end()
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        time.sleep(0.02)
    folder = job.place / checkpoint.FOLDER
    if steps := checkpoint.steps(folder):
        file = chance.choice(sorted(checkpoint.step_folder(folder, steps[-1]).glob("*.distcp")))
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1
        file.write_bytes(content)
    job.start()


FAULTS: dict[str, tuple[str, Callable[[Job, random.Random], None]]] = {
    "kill": ("SIGKILL of a random rank", kill_a_rank),
    "hang": (f"SIGSTOP of a random rank, hang_seconds {HANG_SECONDS}", hang_a_rank),
    "launcher": ("SIGKILL of the launcher, started again at once", kill_the_launcher),
    "preempt": ("SIGTERM of the job, started again at once", preempt),
    "damage": ("SIGKILL of the launcher and a flipped bit", damage_the_newest_checkpoint),
}


def rows(place: Path) -> list[metrics.StepMetrics]:
    return metrics.read(place / metrics.FILE_NAME)


def inject(
    fault: str, place: Path, given: tuple[str, ...], steps: int, times: int, seed: int
) -> Result:
    """Train to the end with ``times`` faults, at random steps in separate parts of the run."""
    chance = random.Random(f"{seed} {fault}")
    job = Job(place, *given)
    part = (steps - INTERVAL) // times
    seconds = []
    for number in range(times):
        job.wait_for_step(INTERVAL + number * part + chance.randrange(max(part - 2, 1)))
        begin = time.monotonic()
        FAULTS[fault][1](job, chance)
        # A rank can finish its current step, and that step is not repeated.
        time.sleep(0.3)
        seconds.append(job.wait_for_step(job.step() + 1) - begin)
    survived = job.end() == 0
    return Result(times, survived, status.status(place).steps_lost, seconds)


def saving(place: Path, ranks: int, steps: int) -> tuple[float, float, float, int]:
    """Return the median seconds of a step without saving and of a step with saving, the mean step
    time relative to steps without saving, and the bytes of a checkpoint."""
    wide = ("architecture.dim=256", "training.seq_len=256", f"checkpoint.interval={SAVING}")
    job = Job(place, *wide, f"launch.ranks={ranks}", f"training.steps={steps}")
    if job.end():
        sys.exit(job.said())
    later = rows(place)[SAVING:]  # the first steps include warm-up
    saves = [row.step_seconds for row in later if row.step % SAVING == 1]
    # Writing continues during the following steps; these steps are free of it, too.
    free = [row.step_seconds for row in later if row.step % SAVING == 0 or row.step % SAVING > 5]
    manifest = checkpoint.read_manifest(checkpoint.step_folder(place / checkpoint.FOLDER, steps))
    return (
        statistics.median(free),
        statistics.median(saves),
        statistics.fmean(row.step_seconds for row in later) / statistics.fmean(free),
        sum(file.size for file in manifest.files.values()),
    )


def main() -> int:
    """Measure and print; return 1 if a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="of each run with faults")
    parser.add_argument("--times", type=int, default=3, help="faults of each kind, in one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=60, help="of the run that saves; 0: none")
    parser.add_argument("--note", default="", help="a sentence on the machine, for the file")
    parser.add_argument("--write", type=Path, help="a Markdown file for the results")
    options = parser.parse_args()
    given = (
        *(f"launch.ranks={options.ranks}", f"training.steps={options.steps}"),
        *(f"checkpoint.interval={INTERVAL}", f"launch.hang_seconds={HANG_SECONDS}"),
        "launch.max_restarts=20",
    )
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| fault | injected | survived, bitwise | steps lost | to recover, median | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        if options.faults:
            whole = Job(Path(scratch, "undisturbed"), *given)
            if whole.end():
                sys.exit(whole.said())
            expected = [(row.step, row.loss, row.grad_norm) for row in rows(whole.place)]
        for fault in options.faults:
            place = Path(scratch, fault)
            result = inject(fault, place, given, options.steps, options.times, options.seed)
            same = [(row.step, row.loss, row.grad_norm) for row in rows(place)] == expected
            good = good and result.survived and same
            survived = result.injected if result.survived and same else 0
            lines.append(
                f"| {FAULTS[fault][0]} | {result.injected} | {survived} | {result.steps_lost} "
                f"| {statistics.median(result.seconds):.1f} s | {max(result.seconds):.1f} s |"
            )
            print(lines[-1], flush=True)
        cost = ""
        for ranks in sorted({max(cores // 2, 1), options.ranks}) if options.save_steps else ():
            free, save, mean, size = saving(
                Path(scratch, f"saving{ranks}"), ranks, options.save_steps
            )
            where = "a core beside each" if 2 * ranks <= cores else "none free for anything else"
            cost += (
                f"- {ranks} ranks on {cores} cores ({where}), {size / 2**20:.1f} MiB: the step "
                f"that saves takes {save / free:.2f} times a normal one ({save:.3f} s, "
                f"{free:.3f} s), "
                f"all steps together {mean:.3f} times as long.\n"
            )
    table = "\n".join(lines) if options.faults else ""
    versions = ", ".join(
        f"{p} {metadata.version(p)}" for p in ("atom-train", "torch", "torchtitan")
    )
    about = (
        f"{date.today()}, {platform.machine()}, {cores} cores, {versions}; {options.ranks} ranks, "
        f"a checkpoint every {INTERVAL} steps, seed {options.seed}. {options.note}"
    ).rstrip()
    if cost:
        cost = f"Saving in the background every {SAVING} steps, one thread a rank:\n\n{cost}"
    print(f"\n{about}\n\n{table}\n\n{cost}")
    if options.write:
        options.write.write_text(
            "# What is left after faults\n\n"
            f"`python benchmarks/reliability.py`: {_method()}\n\n{about}\n\n{table}\n\n{cost}"
        )
    return 0 if good else 1


def _method() -> str:
    return (
        "faults at random steps of runs through the real command. Survived\nmeans that the run "
        "ended and every loss and gradient norm is bitwise that of an undisturbed run; steps\nlost "
        "were done again; the time to recover is from the fault until a step is done that had not\n"
        "been before. It includes finding the fault out, starting ranks and loading."
    )


if __name__ == "__main__":
    sys.exit(main())
