"""Make an environment of the wheels that were carried, over the Python that has torch.

Nothing is fetched: this is for a machine without a network. Needs nothing but Python and pip.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

FOLDER = Path("build/gpu")
WHEELS, CARRIED, VENV = FOLDER / "wheels", FOLDER / "carried.json", FOLDER / "venv"


class UnusableError(Exception):
    """The environment cannot be made; the message is one sentence."""


def make(wheels: Path, into: Path) -> Path:
    """Make an environment, and return its Python.

    It sees the packages of the Python that runs this, torch among them, and those of the wheels
    before them. What the wheels require is not installed: ATOM's asks for a newer torch.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise UnusableError(f"{wheels} has no wheels: `make gpu-wheels` where there is a network")
    shutil.rmtree(into, ignore_errors=True)
    python = into / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--without-pip", str(into)])
    # Not --system-site-packages: that of an environment is its base's, which may have no torch.
    lines = (f"import site; site.addsitedir({folder!r})" for folder in _sites())
    (packages,) = into.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    options = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _run([*pip, "install", "--ignore-installed", *options, *map(str, found)])
    return python


def _sites() -> list[str]:
    """Return the folders of packages of the Python that runs this."""
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in folders if Path(folder).is_dir()]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UnusableError(f"{' '.join(command[:5])} … failed: {lines[-1] if lines else '?'}")
