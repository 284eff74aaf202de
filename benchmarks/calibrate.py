"""Calibrate a device file on this machine, and predict ten other runs with it.

    python benchmarks/calibrate.py [--device FILE.yaml] [--keep FOLDER]

``atom plan calibrate`` fits the file to its own small runs. The ten runs here have other sizes and
layouts. Takes about six minutes on two quiet cores; ``--device`` uses a file of before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from atom.cli import plan_calibrate
from atom.plan import calibration
from atom.plan.device import named

GOAL = 0.10

# Width, layers, tokens of a sequence, sequences, parallelism.
RUNS = (
    (192, 3, 128, 4, "single"),
    (384, 2, 256, 2, "single"),
    (256, 6, 128, 4, "single"),
    (512, 4, 256, 2, "single"),
    (128, 2, 512, 4, "single"),
    (192, 4, 256, 4, "fsdp"),
    (512, 2, 256, 4, "fsdp"),
    (256, 6, 128, 8, "fsdp"),
    (384, 2, 128, 4, "tp"),
    (256, 4, 256, 2, "tp"),
)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", type=Path, help="a device file that was fitted before")
    arguments.add_argument("--keep", type=Path, help="keep runs and device file in this folder")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        file = given.device or folder / "device.yaml"
        if given.device is None:
            command = [sys.executable, "-m", "atom", "plan", "calibrate", "--out", str(file)]
            subprocess.run(command, check=True)
        device = named(str(file))
        runs = folder / "runs"
        runs.mkdir(exist_ok=True)
        observed = []
        for size in RUNS:
            words = plan_calibrate.overrides(*size, ranks=2)
            found = plan_calibrate.trained(words, runs)
            observed.append(replace(found, name=" ".join(map(str, size))))
    errors = calibration.errors(device, observed)
    print("| width, layers, length, sequences | measured, s | predicted, s | error |")
    print("| --- | ---: | ---: | ---: |")
    for one, error in zip(observed, errors, strict=True):
        predicted = one.seconds * (1 + error)
        print(f"| {one.name} | {one.seconds:.4f} | {predicted:.4f} | {error:+.1%} |")
    middle = calibration.typical(errors)
    print(f"\nmedian absolute error {middle:.1%}, worst {max(map(abs, errors)):.1%}")
    return 0 if middle <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
