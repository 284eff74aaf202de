"""Judge a release by the Model Openness Framework and by the Open Source AI Definition 1.0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from atom.release.facts import Facts
from atom.release.form import Form

_DATA = (
    "CC0-", "CC-BY-1", "CC-BY-2", "CC-BY-3", "CC-BY-4", "CC-BY-SA-", "CDLA-", "ODC-BY-", "ODBL-",
    "GFDL-1.3", "OGL-", "PDDL-",
)  # fmt: skip
_CODE = (
    "APACHE-2.0", "MIT", "BSD-", "ISC", "MPL-2.0", "GPL-", "LGPL-", "AGPL-", "EUPL-", "ZLIB",
    "UNLICENSE", "0BSD", "PSF-2.0", "PYTHON-2.0", "BSL-1.0", "ARTISTIC-2.0",
)  # fmt: skip
_ANY = ("OPENMDW-1.0",)


def is_open(licence: str | None) -> bool:
    """Return whether an SPDX identifier is that of an open licence; no licence is not open.

    Of an expression with ``AND`` all must be, with ``OR`` one.
    """
    if not licence or "(" in licence:
        return False
    return any(
        all(
            each.strip().upper().startswith((*_DATA, *_CODE, *_ANY))
            and "-NC" not in each.upper()
            and "-ND" not in each.upper()
            for each in part.split(" AND ")
        )
        for part in licence.split(" OR ")
    )


@dataclass(frozen=True)
class Component:
    """A component of the framework: whether it is in the release, and under which licence."""

    name: str
    level: int
    """The class that needs it: 3, 2 or 1."""

    present: bool
    licence: str | None
    missing: str
    """What to do if it is missing."""

    @property
    def problem(self) -> str | None:
        """Return why the component does not count, or None."""
        if not self.present:
            return f"{self.name} is missing: {self.missing}"
        if not self.licence:
            return f"{self.name} has no licence"
        if not is_open(self.licence):
            return f"{self.name}: {self.licence} is no open licence"
        return None


@dataclass(frozen=True)
class Verdicts:
    """The class of the framework (3, 2, 1, or None), and the answers of the definition."""

    openness: int | None
    components: list[Component]
    definition: str
    """``met``, ``not met`` or ``needs a person``."""

    reasons: list[str] = field(default_factory=list)

    @property
    def roman(self) -> str:
        """The class as the framework writes it."""
        return {1: "I", 2: "II", 3: "III", None: "none"}[self.openness]

    def missing(self) -> list[str]:
        """Return what is missing for the next class."""
        level = 3 if self.openness is None else self.openness - 1
        return [c.problem for c in self.components if c.level >= level and c.problem is not None]

    def to_json(self) -> dict[str, Any]:
        """Return the verdicts as data."""
        return {
            "model_openness_framework": {"class": self.roman, "missing": self.missing()},
            "open_source_ai_definition": {"verdict": self.definition, "reasons": self.reasons},
        }


def judge(facts: list[Facts], form: Form, has: Callable[[str], bool]) -> Verdicts:
    """Judge a release.

    Args:
        facts: of its runs.
        form: what a person has said.
        has: whether the release has a file, or a file in a folder, of this name.
    """
    code = _worst([lic for each in facts for lic in each.code_licences.values()])
    weights = form.licence or None
    data = form.data_licence or _worst([each.data_licence for each in facts])
    documents = form.licence or None
    results = any(each.evaluations or any(r.validation for r in each.rows) for each in facts)
    steps = sum(len(each.stage.checkpoints) for each in facts)
    available = bool(form.data_access) or all(each.data_origin for each in facts)
    components = [
        Component("model architecture", 3, has("code"), code, "release with the code"),
        Component("final model parameters", 3, has("model.safetensors") or has("checkpoints"),
                  weights, "train with checkpoint.enable=true"),
        Component("evaluation results", 3, results, documents, "atom eval, or validation.sets"),
        Component("model card", 3, has("README.md"), documents, "atom release writes it"),
        Component("data card", 3, has("DATA.md"), documents, "atom release writes it"),
        Component("technical report", 3, bool(form.report or form.paper), documents,
                  "say where it is: report in release.yaml"),
        Component("training code", 2, has("code"), code, "release with the code"),
        Component("inference code", 2, has("code"), code, "release with the code"),
        Component("evaluation code", 2, has("code"), code, "release with the code"),
        Component("evaluation data", 2, results and available, data,
                  "say where the data is: data_access in release.yaml"),
        Component("datasets", 1, available, data,
                  "say where the data is: data_access in release.yaml"),
        Component("data preprocessing code", 1, has("code"), code, "release with the code"),
        Component("model parameters of intermediate checkpoints", 1, steps > 1, weights,
                  "keep more than one checkpoint"),
        Component("research paper", 1, bool(form.paper), documents, "paper in release.yaml"),
    ]  # fmt: skip
    reached: int | None = None
    for level in (3, 2, 1):
        if any(c.problem for c in components if c.level == level):
            break
        reached = level
    return Verdicts(reached, components, *_definition(components, form, available))


def _definition(components: list[Component], form: Form, available: bool) -> tuple[str, list[str]]:
    """Return whether the definition is met, and why it is not or needs a person."""
    needed = ("model architecture", "final model parameters", "training code", "inference code")
    failed = [c.problem for c in components if c.name in needed and c.problem is not None]
    if not available:
        failed.append("data information: nobody says where others get the data")
    if form.can_be_rebuilt is False:
        failed.append("a person says that no equivalent system can be built from it")
    if failed:
        return "not met", failed
    asked = []
    if not form.data_description:
        asked.append("data information: data_description in release.yaml is empty")
    if form.can_be_rebuilt is None:
        asked.append("whether a skilled person can rebuild it: can_be_rebuilt in release.yaml")
    return ("needs a person", asked) if asked else ("met", [])


def _worst(licences: list[str | None]) -> str | None:
    """Return the licence that stands for all: none if one is missing, then one that is not open."""
    if not licences or any(not each for each in licences):
        return None
    closed = [each for each in licences if not is_open(each)]
    return closed[0] if closed else " AND ".join(sorted({str(each) for each in licences}))


def framework_file(name: str, verdicts: Verdicts) -> str:
    """Return ``MOF.yml``, the framework's own file, with the class that was computed."""
    content = {
        "framework": {
            "name": "Model Openness Framework",
            "version": "1.0",
            "date": "2024-12-15",
        },
        "release": {
            "name": name,
            "license": {},
            "components": [
                {
                    "name": each.name.capitalize(),
                    "description": each.problem or "included",
                    "license": each.licence or "unlicensed",
                }
                for each in verdicts.components
                if each.present
            ],
        },
        "class": verdicts.roman,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
