"""Golden runs: losses of the tiny architectures, and the text of ``--help``.

The sentences of bad input are compared in ``test_bad_input.py``, where they are made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.bench.report import processor
from atom.cli import COMMANDS
from atom.registry.host import Host
from atom.testing import matrix, ranks, runs

sys.path.append(str(Path(__file__).parent))

from golden.record import WRITE, Record

LAYOUTS = ("single", "fsdp", "tp", "pp", "cp")

TOLERANCE = 1e-5
"""|difference in loss| on several ranks, or where another kind of CPU made the golden run."""

LOSSES, HELP = Record("losses"), Record("help")


@pytest.fixture(scope="module")
def options() -> tuple[dict, dict]:
    host = Host.load()
    return matrix.architectures(host), matrix.strategies(host)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_of_the_tiny_architectures(layout: str, options: tuple[dict, dict]) -> None:
    """Bit by bit on one rank of the same kind of CPU; what a layout refuses, it refuses so.

    Each architecture is run under half of the layouts of several ranks, since its suite compares
    all of them with one rank; ``ATOM_GOLDEN=all`` runs the rest, too.
    """
    architectures, strategies = options
    for number, (name, architecture) in enumerate(sorted(architectures.items())):
        place = LAYOUTS.index(layout)
        if place and (number + place) % 2 and not os.environ.get(WRITE):
            continue
        # Checkpoints and validation change no loss, and the architecture suites have them.
        run = runs.sections(architecture, strategies[layout], checkpoint={"enable": False})
        del run["validation"]
        run["launch"] = {"ranks": matrix.world_size(strategies[layout]), "max_restarts": 0}
        try:
            found = [row.loss for row in ranks.shared().train(run)]
        except ranks.UserError as error:
            found = " ".join(str(error).split())
        golden = LOSSES.value(f"{name} {layout}", found)
        made_on = LOSSES.value("cpu", processor())
        if isinstance(golden, str) or (layout == "single" and made_on == processor()):
            assert found == golden, name
        else:
            assert found == pytest.approx(golden, abs=TOLERANCE), name


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, forked: Callable) -> None:
    result = forked(*filter(None, [command]), "--help")
    assert result.returncode == 0
    assert result.stdout == HELP.value(command or "atom", result.stdout)
