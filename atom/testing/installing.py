"""Create the metadata of an installed plugin in a folder."""

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
    """Write the metadata that an installer creates for a package, and return its folder.

    Args:
        site: folder of the package's files, to be put on a process's ``PYTHONPATH``.
        package: the distribution's name.
        module: module of the entry point; by default derived from the package's name.
        entry_point: its name; by default that of the module.
        version: the distribution's version.
        metadata: additional metadata lines.
    """
    name = package.replace("-", "_")
    module = module or name
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    described = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{metadata}"
    (folder / "METADATA").write_text(described)
    (folder / "entry_points.txt").write_text(f"[atom]\n{entry_point or module} = {module}\n")
    return folder
