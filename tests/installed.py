"""Make an environment of its own with ATOM and its plugins from wheels, as a user installs them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))

BUILD = """
import os, sys
from hatchling.build import build_wheel

_, folder, *sources = sys.argv
for source in sources:
    os.chdir(source)
    build_wheel(folder)
"""


def wheels(folder: Path) -> list[Path]:
    """Build the wheels of the core and the plugins in ``folder``, and return them.

    pip would call the same function of their build system, in two processes for each.
    """
    command = [sys.executable, "-c", BUILD, str(folder), str(ROOT), *map(str, PLUGINS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob("*.whl"))


class Environment:
    """A virtual environment with wheels; torch and other packages are lent by this one.

    Args:
        place: the folder of the environment.
        packages: the wheels.
        variables: the environment variables of its commands.
    """

    def __init__(self, place: Path, packages: list[Path], variables: Mapping[str, str]) -> None:
        venv.create(place, with_pip=True)
        site = next(place.glob("lib/python*/site-packages"))
        # A plain path line: what is installed editable here does not come along.
        (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self._bin = place / "bin"
        pytest = self._bin / "pytest"
        pytest.write_text(
            f"#!{self._bin / 'python'}\nimport sys\nfrom pytest import main\nsys.exit(main())\n"
        )
        pytest.chmod(0o755)
        left_out = ("PYTHONPATH", "VIRTUAL_ENV")
        self._variables = {
            name: value
            for name, value in variables.items()
            if name not in left_out and not name.startswith("PYTEST_")
        }
        self._variables["PATH"] = f"{self._bin}:{variables['PATH']}"
        done = self.run(
            *("pip", "install", "-q", "--no-deps", "--no-index", *map(str, packages)), cwd=place
        )
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command as after ``source bin/activate``."""
        return subprocess.run(
            command, cwd=cwd, env=self._variables, capture_output=True, text=True, check=False
        )
