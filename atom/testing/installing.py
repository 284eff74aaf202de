"""A plugin in a folder, found as if an installer had put it there."""

from __future__ import annotations

from pathlib import Path


def describe(
    site: Path,
    package: str,
    *,
    module: str | None = None,
    entry_point: str | None = None,
    version: str = "1.0",
    metadata: str = "",
) -> Path:
    """Write what an installer leaves beside a package, and return that folder.

    Args:
        site: of the package's files; to be put on a process's ``PYTHONPATH``.
        package: the distribution's name.
        module: what the entry point refers to; by default the package's name as a module.
        entry_point: its name; by default that of the module.
        version: of the distribution.
        metadata: more lines of it.
    """
    name = package.replace("-", "_")
    module = module or name
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    described = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{metadata}"
    (folder / "METADATA").write_text(described)
    (folder / "entry_points.txt").write_text(f"[atom]\n{entry_point or module} = {module}\n")
    return folder
