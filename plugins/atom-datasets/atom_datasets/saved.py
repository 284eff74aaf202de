"""Select the tables in folders that ``save_to_disk`` of ``datasets`` has written.

These folders also contain descriptions, and caches of ``map``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from atom_datasets.finding import open_regular

_STATE = "state.json"
_STATE_BYTES = 16 << 20
_SAID = ("dataset_info.json", "dataset_dict.json", _STATE)


def tables(files: Iterable[Path]) -> list[Path]:
    """Return ``files`` without files of saved datasets that are not tables."""
    files = list(files)
    named = {path.parent: _named(path) for path in files if path.name == _STATE}
    saved = {folder: names for folder, names in named.items() if names}
    above = {folder.parent for folder in saved}

    def is_read(path: Path) -> bool:
        if path.parent in saved:
            return path.name in saved[path.parent]
        return not (path.parent in above and path.name in _SAID)

    return [path for path in files if is_read(path)]


def _read(state: Path) -> bytes:
    with open_regular(state) as file:
        return file.read(_STATE_BYTES)


def _named(state: Path) -> set[str]:
    """Return the table names of a saved dataset; none if ``state`` does not describe one."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        return {str(one["filename"]) for one in json.loads(_read(state))["_data_files"]}
    return set()
