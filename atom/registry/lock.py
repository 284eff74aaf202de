"""Write and check the plugin lock: digests of the installed files at the time of a review.

``atom plugins lock FILE`` writes it; a run with ``plugins.locked=FILE`` checks it before it imports
a plugin. It detects another version, an edited, added or missing file, and an added or missing
package. Afterwards Python imports exactly the compared source: see
:mod:`atom.registry.from_source`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.files import read_text, write_json
from atom.io.files import sha256 as sha256_of
from atom.registry import from_source
from atom.registry.installed import Plugin, normalized, recorded

FORMAT = 2
KEY = "plugins.locked"
LARGEST = 2**26
"""Maximum bytes of a lock; that of ATOM's own plugins has a thousandth."""
MOST_FILES = 100_000
"""Maximum files per package."""

# Files of the installer that describe the installation, not the package.
_INSTALLING = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")


def content(plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Return the content of the lock: for each package its version, its entry points and the
    SHA-256 of each file."""
    packages: dict[str, dict[str, Any]] = {}
    for plugin in plugins:
        new = {"version": plugin.version, "entry_points": {}, "files": {}}
        entry = packages.setdefault(plugin.package, new)
        entry["entry_points"][plugin.entry_point] = plugin.module
        entry["files"] |= {name: sha256(path) for name, path in files(plugin)}
    for entry in packages.values():
        entry["files"] = dict(sorted(entry["files"].items()))
    return {"format": FORMAT, "plugins": dict(sorted(packages.items()))}


def write(path: Path, plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Write the lock of ``plugins`` atomically, and return it.

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
    """Refuse plugins that differ from the lock; import the others from their source.

    Args:
        path: the lock.
        plugins: the plugins about to be loaded.
        blocked: the installed plugins that are not loaded; the lock can contain them or not.
        partly: True if ``plugins`` are only those that one run uses.

    Raises:
        UserError: names the first package and file that differ.
    """
    locked = {normalized(name): (name, entry) for name, entry in _read(path).items()}
    packages: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        packages.setdefault(plugin.package, []).append(plugin)
    sources: dict[str, str | None] = {}
    for package, its in packages.items():
        _, entry = locked.pop(normalized(package), (None, None))
        if difference := _difference(package, its, entry):
            raise UserError(difference, key=KEY, value=path)
        assert entry is not None
        installed = {name: file for plugin in its for name, file in files(plugin)}
        sources |= {str(file): entry["files"][name] for name, file in installed.items()}
    for plugin in blocked:
        locked.pop(normalized(plugin.package), None)
    for name, entry in () if partly else locked.values():
        raise UserError(
            f"the package {name} {entry['version']} is in the lock and not installed",
            key=KEY,
            value=path,
        )
    from_source.use(sources)


def files(plugin: Plugin) -> Iterator[tuple[str, Path]]:
    """Yield every installed file of a plugin's package, with its path relative to the import path.

    These are the files that the installer recorded, and all others in the folder of the code; for
    an editable install, all files there. Bytecode caches are left out, because they are not used.

    Raises:
        UserError: an entry is not a file, or there are too many.
    """
    seen = set()
    for name, path, _ in recorded(plugin.package):
        if (path.name in _INSTALLING and ".dist-info/" in name) or _is_cache(path):
            continue
        seen.add(name)
        yield name, path
    if plugin.source is None:
        return
    names = plugin.import_package.split(".")
    entry = plugin.source.parents[len(names) - 1]
    tops = [plugin.source]
    if not any(path.is_relative_to(plugin.source) for _, path, _ in recorded(plugin.package)):
        # For an editable install: its parts of the namespace package and of hydra_plugins are all
        # there is.
        tops = [plugin.source if len(names) == 1 else entry / names[0], entry / "hydra_plugins"]
    for path in (path for top in tops for path in _below(top)):
        name = path.relative_to(entry).as_posix()
        if name not in seen and not _is_cache(path):
            seen.add(name)
            yield name, path


def _below(top: Path) -> Iterator[Path]:
    """Yield the files in a folder, in order. Links to folders are followed, as imports do."""
    if top.is_file():
        yield top
    found = 0
    for place, folders, names in os.walk(top, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        for folder in folders:
            below = os.path.realpath(Path(place, folder))
            if f"{real}/".startswith(f"{below}/"):
                raise UserError(f"{place}/{folder} is a link to a folder that it is in", key=KEY)
        found += len(names)
        if found > MOST_FILES:
            raise UserError(f"{top} holds more than {MOST_FILES:,} files", key=KEY)
        for path in (Path(place, name) for name in sorted(names)):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is no regular file", key=KEY)
            yield path


def sha256(path: Path) -> str | None:
    """Return the digest of a file's content; None if the file cannot be read."""
    try:
        return sha256_of(Path(os.path.realpath(path)))
    except OSError:
        return None


def _difference(
    package: str, entry_points: list[Plugin], entry: dict[str, Any] | None
) -> str | None:
    """Return how an installed package differs from its entry in the lock, or None."""
    version = entry_points[0].version
    if entry is None:
        return f"the package {package} {version} is installed and not in the lock"
    if entry["version"] != version:
        return f"the package {package} is {version} and not {entry['version']}"
    for plugin in entry_points:
        if entry["entry_points"].get(plugin.entry_point) != plugin.module:
            return (
                f"the package {package} {version} has an entry point that is not in the lock: "
                f"{plugin.entry_point} = {plugin.module}"
            )
    expected = dict(entry["files"])
    for name, path in (file for plugin in entry_points for file in files(plugin)):
        if name not in entry["files"]:
            return f"the package {package} {version} has a file that is not in the lock: {name}"
        if sha256(path) != expected.pop(name, entry["files"][name]):
            lost = "is missing" if not path.exists() else "has changed"
            return f"the file {name} of the package {package} {version} {lost}"
    for name in expected:
        return f"the file {name} of the package {package} {version} is missing"
    return None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lock = json.loads(read_text(Path(os.path.realpath(path)), most=LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise UserError(f"the lock cannot be read: {words}", key=KEY, value=path) from None
    plugins = lock.get("plugins") if isinstance(lock, dict) else None
    if not isinstance(plugins, dict):
        plugins = {}
    sound = all(
        isinstance(entry, dict)
        and isinstance(entry.get("version"), str)
        and isinstance(entry.get("entry_points"), dict)
        and isinstance(entry.get("files"), dict)
        for entry in plugins.values()
    )
    if not sound or not isinstance(lock, dict) or lock.get("format") != FORMAT:
        raise UserError(
            f"is no lock of format {FORMAT}",
            valid="a file that `atom plugins lock` wrote",
            key=KEY,
            value=path,
        )
    return plugins


def _is_cache(path: Path) -> bool:
    return path.suffix in (".pyc", ".pyo") and path.parent.name == "__pycache__"
