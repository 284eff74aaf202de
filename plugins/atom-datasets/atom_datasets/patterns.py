"""Patterns of the files of a dataset, in place of a subset: ``data/python/*``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from atom.errors import UserError

_KEY = "dataset.data_files"
_VALID = "patterns of files within it, such as data/python/*"


def listed(given: str | list[str] | None) -> tuple[str, ...]:
    """Return the patterns of a parameter: one, several or none."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def leads_out(pattern: str) -> bool:
    """Return whether a pattern can match files outside of a dataset."""
    return "://" in pattern or pattern.startswith(("/", "~")) or ".." in parts(pattern)


def parts(name: str) -> tuple[str, ...]:
    """Return the names of the folders in a path, and of the file."""
    return PurePosixPath(name.replace("\\", "/")).parts


def check_inside(patterns: Iterable[str]) -> None:
    """Refuse patterns that lead out of a dataset.

    Raises:
        UserError: one does.
    """
    for pattern in patterns:
        if leads_out(pattern):
            raise UserError("leads out of the dataset", valid=_VALID, key=_KEY, value=pattern)


def check_used(patterns: Iterable[str], names: Iterable[str], dataset: str) -> None:
    """Refuse a pattern that matches none of the files: ``datasets`` would leave it out.

    Raises:
        UserError: one matches none.
    """
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    names = list(names)
    for pattern in patterns:
        matches = re.compile(f"(?:.*/)?{glob_translate(pattern)}").match
        if not any(map(matches, names)):
            raise UserError(f"no file of {dataset} matches", valid=_VALID, key=_KEY, value=pattern)
