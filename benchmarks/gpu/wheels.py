"""Collect the wheels that ``make gpu`` needs on another machine, beside torch and Triton.

    python benchmarks/gpu/wheels.py [--python 3.12] [--machine x86_64] [--with quack-kernels …]

ATOM and its kernel packages are built, the others are fetched, in the versions of
``constraints.txt``. They go to ``build/gpu/wheels``; ``build/gpu/carried.json`` says what is there
and of which commit. More than 64 MiB are refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from environment import CARRIED, WHEELS

ROOT = Path(__file__).parents[2]

OWN = (
    ".",
    *(f"plugins/atom-kernels-{name}" for name in ("torch", "triton", "adapters")),
)
NEEDED = ("pluggy", "pydantic", "PyYAML", "packaging", "pytest", "hypothesis")
"""Fetched with their dependencies. Kernels use no other dependency of ATOM's."""

BESIDE = ("liger-kernel", "cut-cross-entropy>=25.1.1,<26")
"""Kernels to compare with, fetched without dependencies: torch and Triton are there."""

MOST = 64 * 2**20
"""Bytes of all wheels together."""

TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"pip {arguments[0]} failed")


def commit() -> str | None:
    """Return the commit of the work tree, with ``+`` if it has changes; None without git."""
    command = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.check_output([*command, "rev-parse", "HEAD"], text=True).strip()
        changes = subprocess.check_output([*command, "status", "--porcelain"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changes else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.12", help="of the other machine; 3.12 by default")
    parser.add_argument("--machine", default="x86_64", help="what `uname -m` says there")
    parser.add_argument(
        "--with", dest="more", nargs="*", default=[], help="more packages, without their own needs"
    )
    options = parser.parse_args()
    wheels = ROOT / WHEELS
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    into = ("--quiet", "-c", str(ROOT / "constraints.txt"))
    pip("wheel", "--quiet", "--no-deps", "-w", str(wheels), *OWN)
    platforms = [f"--platform={tag}_{options.machine}" for tag in TAGS]
    there = ("--only-binary=:all:", f"--python-version={options.python}", "--implementation=cp")
    download = ("download", *into, *there, *platforms, "-d", str(wheels))
    pip(*download, *NEEDED)
    pip(*download, "--no-deps", *BESIDE, *options.more)
    found = {each.name: each.stat().st_size for each in sorted(wheels.glob("*.whl"))}
    size = sum(found.values())
    content = {"date": date.today().isoformat(), "commit": commit(), "python": options.python}
    (ROOT / CARRIED).write_text(json.dumps(content | {"wheels": found}, indent=2) + "\n")
    print(f"{WHEELS}: {len(found)} wheels, {size / 2**20:.1f} MiB, for Python {options.python}")
    if size > MOST:
        sys.exit(f"that is more than the {MOST // 2**20} MiB that can be carried")


if __name__ == "__main__":
    main()
