"""What a run ran with: the versions, the plugins with hashes of their files, and the commit."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import atom
from atom.plugin import Kernel
from atom.registry.host import Component, Host, Plugin

PACKAGES = (
    "torch",
    "torchtitan",
    "hydra-core",
    "omegaconf",
    "pluggy",
    "pydantic",
    "structlog",
    "tokenizers",
    "datasets",
    "triton",
)
"""The dependencies that can change what a run does."""

_COMPILED = (".pyc", ".pyo", ".so", ".pyd", ".o")


def lock(
    host: Host, *, seed: int | None, device: str, kernels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what ``lock.json`` holds.

    A package that is not installed has the version None; ``git`` is None outside of a repository.
    Nothing is imported for it, so it can be written before torch is.

    Args:
        host: the plugins.
        seed: the run's seed.
        device: where the run will be, as resolved (``cpu`` or ``cuda``).
        kernels: the kernel chosen for each operation.
    """
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "atom": atom.__version__,
        "torch": versions["torch"],
        "torchtitan": versions["torchtitan"],
        "packages": versions,
        "plugins": [
            {
                "package": plugin.package,
                "version": plugin.version,
                "module": plugin.module,
                "sha256": sha256(plugin),
            }
            for plugin in host.plugins
        ],
        "kernels": [
            _kernel(operation, host.find("kernel", f"{operation}/{name}"))
            for operation, name in (kernels or {}).items()
        ],
        "git": _git(),
        "seed": seed,
        "device": device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _kernel(operation: str, component: Component) -> dict[str, Any]:
    """Return a kernel with its plugin, and with the versions of the packages that it needs."""
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    needed = [Requirement(package).name for package in kernel.needs.packages]
    return {
        "operation": operation,
        "kernel": kernel.name,
        "package": component.plugin.package,
        "version": component.plugin.version,
        "needs": {package: _version(package) for package in needed},
    }


def sha256(plugin: Plugin) -> str | None:
    """Return a digest of the paths and contents of a plugin's files, or None if it has none.

    What Python or a compiler has made of them is left out: it differs between machines that have
    the same plugin.
    """
    if plugin.source is None:
        return None
    digest = hashlib.sha256()
    for name, path in sorted(_files(plugin.source)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        # The digests have one length, so no two lists of files are the same bytes.
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of a package's folder, or the one file of a module, with their names."""
    if not source.is_dir():
        yield source.name, source
        return
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and "__pycache__" not in name.parts and path.suffix not in _COMPILED:
            yield name.as_posix(), path


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit of the current folder's repository, and whether tracked files differ."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
            # Only look: another git may be at work in the repository.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = result.stdout.splitlines()
    commit = next(line.split()[2] for line in lines if line.startswith("# branch.oid"))
    if commit == "(initial)":
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
