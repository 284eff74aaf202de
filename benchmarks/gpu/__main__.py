"""Compare and time ATOM's kernels on the GPU of this machine: the command behind ``make gpu``.

    python benchmarks/gpu [--seconds 570] [--device cuda|cpu] [--results FOLDER] [--part NAME …]

The parts of ``plan.py`` run in their order, each within a share of the time, in an environment of
the wheels that ``make gpu-wheels`` has collected (``--here``: in the Python that runs this). The
results go to a folder of their own. ``--device cpu`` rehearses it, with Triton's interpreter. The
exit code is 1 if a part failed or could not be finished.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import environment
import plan
from parts import LOG, SUMMARY, read, run

SECONDS = 570.0
"""Of all parts together, so that the whole call is over in ten minutes."""


def new_folder(results: Path, name: str) -> Path:
    """Make a new folder for results, and return it."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    for n in range(1, 1000):
        folder = results / (f"{date.today()}-{slug}" + (f"-{n}" if n > 1 else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise environment.UnusableError(f"{results} has a thousand folders of today")


def described(python: str, device: str, carried: bool, results: Path) -> Path:
    """Describe the device, and return the new folder for its results."""
    results.mkdir(parents=True, exist_ok=True)
    place = results / f"device-{os.getpid()}.json"
    options = [f"--device={device}", f"--write={place}"]
    if carried:
        options.append(f"--carried={environment.CARRIED}")
    command = [python, "-P", str(plan.HERE / "device.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise environment.UnusableError(lines[-1] if lines else "device.py failed")
    folder = new_folder(results, read(place)["device"]["name"])
    place.replace(folder / "device.json")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of it all; 570 by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--results", type=Path, default=environment.FOLDER / "results")
    parser.add_argument(
        "--part", action="append", choices=plan.names(), help="may be repeated; all by default"
    )
    parser.add_argument("--here", action="store_true", help="no wheels: this Python has ATOM")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    os.chdir(plan.ROOT)
    # Launches that the table lacks are guessed: to try them would take the time of everything.
    os.environ |= {"ATOM_TRITON_TUNE": "0", "PYTHONUNBUFFERED": "1"}
    if options.device == "cpu":
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        python = sys.executable
        if not options.here:
            python = str(environment.make(environment.WHEELS, environment.VENV).absolute())
        folder = described(python, options.device, not options.here, options.results.absolute())
    except environment.UnusableError as error:
        print(f"benchmarks/gpu: {error}", file=sys.stderr)
        return 2
    where = plan.Where(python, options.device, folder)
    wanted = options.part or plan.names()
    chosen = [part for part in plan.parts(where) if part.name in wanted]
    (folder / LOG).touch()
    results = run(chosen, folder, until, lambda: plan.heading(where, options.seconds))
    print(f"\n{(folder / SUMMARY).read_text()}\n{folder}")
    return 0 if all(result.complete for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
