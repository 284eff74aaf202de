"""The lock of plugins: which files were installed when somebody had looked at them.

``atom plugins lock FILE`` writes it; a run with ``plugins.locked=FILE`` checks it before it imports
a plugin. It tells of another version, an edited, added or lost file, and a package more or less.
It is no defence against someone who can write to the machine while the run begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atom import yaml_data
from atom.errors import UserError
from atom.files import sha256 as sha256_of
from atom.files import write_json
from atom.installed import Plugin, normalized, recorded

FORMAT = 1
_MOST = 64 * 2**20
"""Bytes that a lock may have: some hundred for each file of each plugin."""

KEY = "plugins.locked"

# What an installer writes of the installing, and not of the package.
_INSTALLING = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")


def content(plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Return what the lock holds: of each package its version, and the SHA-256 of each file."""
    packages: dict[str, dict[str, Any]] = {}
    for plugin in plugins:
        entry = packages.setdefault(plugin.package, {"version": plugin.version, "files": {}})
        entry["files"] |= {name: sha256(path) for name, path in files(plugin)}
    for entry in packages.values():
        entry["files"] = dict(sorted(entry["files"].items()))
    return {"format": FORMAT, "plugins": dict(sorted(packages.items()))}


def write(path: Path, plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Write the lock of ``plugins``, whole or not at all, and return it.

    Raises:
        UserError: the file cannot be written.
    """
    lock = content(plugins)
    try:
        write_json(path, lock)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return lock


def check(
    path: Path, plugins: Iterable[Plugin], blocked: Iterable[Plugin], *, partly: bool
) -> None:
    """Refuse plugins that differ from the lock.

    Args:
        path: the lock.
        plugins: those about to be loaded.
        blocked: those that are installed, and will not be: they may be in the lock, or not.
        partly: whether the plugins are no more than what one run uses of those installed.

    Raises:
        UserError: names the first package and file that differ.
    """
    locked = {normalized(name): (name, entry) for name, entry in _read(path).items()}
    packages: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        packages.setdefault(plugin.package, []).append(plugin)
    for package, its in packages.items():
        _, entry = locked.pop(normalized(package), (None, None))
        if difference := _difference(package, its, entry):
            raise UserError(difference, key=KEY, value=path)
    for plugin in blocked:
        locked.pop(normalized(plugin.package), None)
    for name, entry in () if partly else locked.values():
        raise UserError(
            f"the package {name} {entry['version']} is in the lock and not installed",
            key=KEY,
            value=path,
        )


def files(plugin: Plugin) -> Iterator[tuple[str, Path]]:
    """Yield every installed file of a plugin's package, with its path relative to the import path.

    That is what the installer recorded, and what else is in the folder of the code: of an editable
    install, everything. Caches of bytecode are left out, unless Python would run them unseen.
    """
    seen = set()
    for name, path, hashed in recorded(plugin.package):
        if path.name in _INSTALLING and ".dist-info/" in name:
            continue
        if _is_cache(path) and not hashed and not _is_unchecked(path):
            continue
        seen.add(name)
        yield name, path
    source = plugin.source
    if source is None:
        return
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        name = path.relative_to(source.parent).as_posix()
        if name in seen or path.is_dir() or (_is_cache(path) and not _is_unchecked(path)):
            continue
        yield name, path


def sha256(path: Path) -> str | None:
    """Return the digest of a file's content; None if the file cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def _difference(
    package: str, entry_points: list[Plugin], entry: dict[str, Any] | None
) -> str | None:
    """Return in what an installed package differs from its entry in the lock."""
    version = entry_points[0].version
    if entry is None:
        return f"the package {package} {version} is installed and not in the lock"
    if entry["version"] != version:
        return f"the package {package} is {version} and not {entry['version']}"
    expected = dict(entry["files"])
    for name, path in (file for plugin in entry_points for file in files(plugin)):
        if name not in entry["files"]:
            return f"the package {package} {version} has a file that is not in the lock: {name}"
        if sha256(path) != expected.pop(name, entry["files"][name]):
            lost = "is gone" if not path.exists() else "has changed"
            return f"the file {name} of the package {package} {version} {lost}"
    for name in expected:
        return f"the file {name} of the package {package} {version} is gone"
    return None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lock = json.loads(yaml_data.text_of(path, most=_MOST, what="a lock"))
    except UserError as error:
        raise UserError(f"the lock cannot be read: {error.problem}", key=KEY, value=path) from None
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise UserError(f"the lock cannot be read: {words}", key=KEY, value=path) from None
    plugins = lock.get("plugins") if isinstance(lock, dict) else None
    if not isinstance(plugins, dict):
        plugins = {}
    sound = all(
        isinstance(entry, dict)
        and isinstance(entry.get("version"), str)
        and isinstance(entry.get("files"), dict)
        for entry in plugins.values()
    )
    if not sound or not isinstance(lock, dict) or lock.get("format") != FORMAT:
        raise UserError(
            f"is no lock of format {FORMAT}; valid: a file that `atom plugins lock` wrote",
            key=KEY,
            value=path,
        )
    return plugins


def _is_cache(path: Path) -> bool:
    return path.suffix in (".pyc", ".pyo") and path.parent.name == "__pycache__"


def _is_unchecked(path: Path) -> bool:
    """Return whether Python runs this bytecode without comparing it to its source (PEP 552)."""
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(8)[4:8], "little") & 0b11 == 0b01
    except OSError:
        return False
