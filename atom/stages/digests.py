"""Compute digests of what stages make and of the code that makes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import atom
from atom.io.files import sha256
from atom.registry.host import Plugin
from atom.run_dir import checkpoint, provenance
from atom.stages.commands import DATA, WEIGHTS

_TOKENIZER = "tokenizer"


def of_value(value: Any) -> str:
    """Return the digest of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_output(folder: Path, makes: str, step: int | None) -> str:
    """Return the digest of what a stage has made.

    Manifests of checkpoints and of token shards hold the SHA-256 of their files, which are
    therefore not read again.

    Args:
        folder: of the stage.
        makes: what the command makes.
        step: of the checkpoint, for weights.
    """
    if makes == WEIGHTS and step is not None:
        place = checkpoint.step_folder(folder / checkpoint.FOLDER, step)
        files = [place / checkpoint.MANIFEST, *_below(folder / _TOKENIZER)]
    elif makes == DATA:
        files = [folder / "manifest.json"]
    else:
        files = list(_below(folder))
    return of_value({path.relative_to(folder).as_posix(): sha256(path) for path in files})


def of_code(plugins: Iterable[Plugin]) -> str:
    """Return the digest of the code of ATOM and of plugins."""
    own = provenance.digest_of(Path(atom.__file__).parent)
    return of_value([own, {plugin.package: provenance.sha256(plugin) for plugin in plugins}])


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
