"""Find the installed packages with an entry point for ATOM, without importing them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from atom.errors import UserError
from atom.plugin import ENTRY_POINT_GROUP
from atom.registry import ownership


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package.

    Attributes:
        entry_point: its name.
        package: its distribution, as pip names it.
        version: the distribution's version.
        module: the entry point's value, the module with the hooks.
        import_package: the package of that module: ``atom_llama`` for ``atom_llama.plugin``.
        source: the folder of the import package, or the file of a module without one. It is found
            without importing anything, so a broken plugin has it too; None if it does not exist.
        conf: the folder with the plugin's Hydra config groups; None if it has none.
        stray: a file that importing ``module`` would execute and that belongs to another package.
        reason: why the plugin is broken or blocked, in one line; None if it is neither.
        warnings: the plugin's uses of deprecated features, one line each.
    """

    entry_point: str
    package: str
    version: str
    module: str
    import_package: str
    source: Path | None = None
    conf: Path | None = None
    stray: Path | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Return whether ``name`` is this plugin's import package or distribution."""
        return normalized(name) in map(normalized, (self.import_package, self.package))


def normalized(package: str) -> str:
    """Return a package's name in the normalized spelling that pip compares."""
    return re.sub(r"[-_.]+", "-", package).lower()


def installed() -> list[Plugin]:
    """Return every entry point of the group once, ordered by package."""
    plugins: dict[tuple[str, str], Plugin] = {}
    first: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        for plugin in _plugins(distribution):
            # If sys.path has two copies of a distribution, Python imports and reports the first.
            if first.setdefault(normalized(plugin.package), distribution) is distribution:
                plugins.setdefault((plugin.package, plugin.module), plugin)
    return sorted(plugins.values(), key=lambda plugin: (plugin.package, plugin.entry_point))


def recorded(package: str) -> Iterator[tuple[str, Path, bool]]:
    """Yield the files in the installer's record of a distribution.

    Yields:
        A file's path relative to the import path, its location, and whether the distribution
        included its hash. Scripts, which are outside of the import path, are left out.
    """
    try:
        files = metadata.distribution(package).files or ()
    except (metadata.PackageNotFoundError, ValueError):  # not a valid distribution name
        return
    for file in files:
        if ".." not in file.parts and not file.is_absolute():
            yield file.as_posix(), Path(str(file.locate())), file.hash is not None


def names_in_files(plugin: Plugin, kind: str) -> set[str]:
    """Return the names of components in a plugin's config group files, without
    importing its code.
    """
    from atom.io import yaml_data

    names = set()
    for file in (plugin.conf / kind).glob("*.yaml") if plugin.conf is not None else ():
        with suppress(UserError, OSError, UnicodeDecodeError):
            section = yaml_data.load(file.read_text(), str(file))
            names.add(str(section.get("name")) if isinstance(section, dict) else "")
    return names


def extra_with(module: str, package: str) -> str | None:
    """Return the extra of a distribution that installs ``module``, if its metadata declares one."""
    try:
        requirements = metadata.distribution(package).requires or ()
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        wanted = normalized(module.partition(".")[0])
        if extra is not None and name is not None and normalized(name[0]) == wanted:
            return extra[1]
    return None


def _plugins(distribution: metadata.Distribution) -> list[Plugin]:
    """Return a plugin for each of a distribution's entry points in the group."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
        # Most packages are not plugins, and parsing all entry points is slow.
        if f"[{ENTRY_POINT_GROUP}]" not in text:
            return []
        points = [p for p in distribution.entry_points if p.group == ENTRY_POINT_GROUP]
        described = distribution.metadata
    # No installer writes unreadable metadata, so skip it.
    except Exception:
        return []
    plugins = []
    for point in points:
        import_package, source = _locate(point.value)
        conf = source / "conf" if source is not None else None
        stray = None
        if source is not None:
            depth = import_package.count(".") + 1
            stray = ownership.stray(distribution, point.value, depth, source)
        plugin = Plugin(
            entry_point=point.name,
            package=described["Name"] or "unknown",
            version=described["Version"] or "unknown",
            module=point.value,
            import_package=import_package,
            source=source,
            conf=conf if conf is not None and conf.is_dir() else None,
            stray=stray,
        )
        plugins.append(plugin)
    return plugins


def _locate(module: str) -> tuple[str, Path | None]:
    """Return the name and location of the outermost regular package or module of ``module``."""
    names = re.split(r"[.:\s]", module)
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            break
        if spec is None:
            break
        # A namespace package has no code, and several distributions share it.
        if spec.origin is None or not spec.has_location:
            continue
        origin = Path(spec.origin)
        return name, origin.parent if spec.submodule_search_locations else origin
    return names[0], None
