"""Record the installed distributions, with digests of their files, without importing them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from atom.registry.installed import normalized

_BY_INSTALLER = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def distributions() -> dict[str, dict[str, Any]]:
    """Return the version and the digest of every installed distribution, by normalized name.

    The digest covers the hashes that the wheel's own record lists: it is the same wherever and by
    whichever installer the wheel was installed. It is None without such a record, as for an
    editable installation.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in sys.path:
        folder = Path(entry or ".")
        if not folder.is_dir():
            continue
        for place in sorted(folder.glob("*.dist-info")):
            name, _, version = place.name.removesuffix(".dist-info").partition("-")
            # The first one on the path is the one that Python imports.
            if normalized(name) not in found:
                found[normalized(name)] = {"version": version, "sha256": recorded_digest(place)}
    return dict(sorted(found.items()))


def recorded_digest(place: Path) -> str | None:
    """Return a digest of a distribution's files by its record, or None.

    Args:
        place: the ``.dist-info`` folder.
    """
    try:
        if (place / "direct_url.json").is_file() and _is_editable(place):
            return None
        lines = (place / "RECORD").read_text(errors="replace").splitlines()
    except OSError:
        return None
    # What the installer adds (scripts, bytecode, its own files) depends on the machine.
    kept = sorted(line for line in lines if ",sha256=" in line and not _is_added(line))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest() if kept else None


def _is_editable(place: Path) -> bool:
    return '"editable": true' in (place / "direct_url.json").read_text(errors="replace")


def _is_added(line: str) -> bool:
    name = line.partition(",")[0].strip('"')
    return (
        name.startswith(("..", "/"))
        or name.endswith(".pyc")
        or (".dist-info/" in name and name.rpartition("/")[2] in _BY_INSTALLER)
    )
