"""Read the facts of released runs from their files, for cards and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.recipe.run import Run, read
from atom.registry.installed import normalized
from atom.release.bundle import RUNS, Bundle, Stage
from atom.run_dir import evals, metrics
from atom.run_dir.evals import Evaluation
from atom.run_dir.folder import LOCK, RUN_FILE
from atom.run_dir.inputs import FILE_NAME as INPUTS
from atom.run_dir.metrics import StepMetrics


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it: settings, lock, digests of its inputs, metrics, evaluations."""

    stage: Stage
    run: Run
    lock: dict[str, Any]
    inputs: dict[str, Any]
    rows: list[StepMetrics]
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def parameters(self) -> int | None:
        """The number of parameters."""
        return self.run.resolved.parameters if self.run.resolved else None

    @property
    def tokens(self) -> int:
        """The tokens that it was trained on."""
        return self.rows[-1].tokens_seen if self.rows else 0

    @property
    def data_licence(self) -> str | None:
        """The licence that the dataset reports."""
        data = self.run.resolved.data if self.run.resolved else None
        return data.licence if data else None

    @property
    def data_origin(self) -> str | None:
        """Where the dataset says that it comes from."""
        data = self.run.resolved.data if self.run.resolved else None
        return data.origin if data else None

    @property
    def code_licences(self) -> dict[str, str | None]:
        """The licences of ATOM and of the plugins that the run used."""
        used = {normalized(name) for name in self.run.plugins.used or ()}
        found = {"atom-train": "Apache-2.0"}
        return found | {
            str(each.get("package")): each.get("licence")
            for each in self.lock.get("plugins", [])
            if normalized(str(each.get("package"))) in used
        }


def of(bundle: Bundle) -> list[Facts]:
    """Return the facts of all stages, in order."""
    return [_facts(bundle.folder / RUNS / stage.name, stage) for stage in bundle.stages]


def _facts(folder: Path, stage: Stage) -> Facts:
    return Facts(
        stage,
        read(folder / RUN_FILE, below=folder),
        _object(folder / LOCK),
        _object(folder / INPUTS),
        metrics.read(folder / metrics.FILE_NAME),
        evals.read(folder),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        return json_data.read(path)
    except FileNotFoundError:
        return {}
