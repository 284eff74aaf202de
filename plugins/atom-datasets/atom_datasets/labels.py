"""Labels of a dataset, for people: its licence and its origin. No document depends on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

LABELS = ("licence", "origin")
"""The parameters that are labels."""

_HUB = re.compile(r"hf://datasets/[^/@]+/[^/@]+@[0-9a-f]{40}(?=/)")


def changed(key: str, before: object, after: object, trained: object) -> str:  # noqa: ARG001
    """Return the effect of a changed parameter on a run that resumes: that of labels is none."""
    return "harmless" if key in LABELS else "refused"


def commit(files: Iterable[object]) -> str | None:
    """Return the address of a dataset on the Hub, with its commit, from those of its files."""
    found = {match[0] for file in files if (match := _HUB.match(str(file)))}
    return found.pop() if len(found) == 1 else None


def joined(each: Mapping[str, str | None]) -> str | None:
    """Return the labels of a mixture's sources as one: ``MIT (code); unknown (web, books)``.

    A label that all have is returned alone.
    """
    if len(set(each.values())) < 2:
        return next(iter(each.values()), None)
    names: dict[str, list[str]] = {}
    for name, label in each.items():
        names.setdefault(label or "unknown", []).append(name)
    return "; ".join(f"{label} ({', '.join(of)})" for label, of in names.items())
