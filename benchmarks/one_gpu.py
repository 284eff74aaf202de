"""Compare the same training on one device with different kernels.

    python benchmarks/one_gpu.py [--kernels reference,auto,hopper] [--architecture llama3_1b]
        [--steps 30] [--batch 2] [--length 4096] [--write FILE.md] [architecture.vocab_size=128256]

Each variant is a separate ``atom train`` under ``parallelism=unsharded``, with the same model,
initial weights and data. Reported are tokens per second, MFU (if the device's peak is known), peak
memory, and the difference of the losses from those of the first variant. Parameters are in bfloat16
on a GPU and in float32 on a CPU. The medians leave out the first third of the steps.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

from atom.run_dir import metrics
from atom.run_dir.metrics import StepMetrics


@dataclass(frozen=True)
class Run:
    """The metrics of a run with ``kernels``."""

    kernels: str
    rows: list[StepMetrics]

    def median(self, name: str) -> float | None:
        values = [getattr(row, name) for row in self.rows[len(self.rows) // 3 :]]
        return None if None in values else statistics.median(values)


def train(kernels: str, options: argparse.Namespace, place: Path) -> Run:
    dtype = "bfloat16" if device() == "cuda" else "float32"
    command = [
        *(sys.executable, "-m", "atom", "train", "parallelism=unsharded"),
        *(f"architecture={options.architecture}", f"kernels={kernels}", f"run.dir={place}"),
        *(f"training.steps={options.steps}", f"training.seq_len={options.length}"),
        *(f"training.global_batch_size={options.batch}", f"training.dtype={dtype}"),
        *(f"training.mixed_precision_param={dtype}", "tokenizer=bytes", "checkpoint.enable=false"),
        *("metrics.log_freq=1", "metrics.enable_tensorboard=false", *options.overrides),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return Run(kernels, list(metrics.read(place / metrics.FILE_NAME)))


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def name_of_device() -> str:
    import torch

    return torch.cuda.get_device_name() if device() == "cuda" else "CPU, no GPU"


def page(runs: list[Run], options: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchtitan"))
    lines = [
        f"# {options.architecture} on one device",
        "",
        f"`python benchmarks/one_gpu.py {' '.join(sys.argv[1:])}`, {date.today()}, "
        f"{name_of_device()}, {versions}: {options.batch} × {options.length} tokens a step.",
        "",
        f"| kernels | tokens/s | over {runs[0].kernels} | MFU | peak memory | largest difference "
        f"of a loss from {runs[0].kernels}'s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = runs[0].median("tokens_per_second")
    for run in runs:
        speed, used = run.median("tokens_per_second"), run.median("mfu")
        mfu = "-" if used is None else f"{100 * used:.1f} %"
        assert speed is not None
        assert first is not None
        memory = max(row.memory_gib or 0 for row in run.rows)
        pairs = zip(run.rows, runs[0].rows, strict=True)
        difference = max(abs(one.loss - other.loss) for one, other in pairs)
        lines.append(
            f"| {run.kernels} | {speed:,.0f} | {speed / first:.2f} "
            f"| {mfu} | {memory:.1f} GiB | {difference:.1g} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default="reference,auto", help="names of kernels=")
    parser.add_argument("--architecture", default="llama3_1b")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2, help="sequences a step")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--write", type=Path)
    parser.add_argument("overrides", nargs="*", help="more of `atom train`")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [train(name, options, Path(folder) / name) for name in options.kernels.split(",")]
    text = page(runs, options)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
