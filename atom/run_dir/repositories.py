"""Record the repositories of code: address, commit, and a patch of what differs from the commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.redaction import concealed

MOST = 8 << 20
"""Maximum bytes of a patch that is kept."""


@dataclass(frozen=True)
class Repository:
    """A work tree with code that a run uses.

    Attributes:
        packages: the packages with code in it.
        address: the address of its remote ``origin``; None without one.
        commit: the commit that is checked out.
        dirty: whether the code differs from the commit, new files included.
        patch: the difference, for ``git apply``; None if there is none, or it is left out.
        left_out: why the patch is left out, or None.
    """

    packages: tuple[str, ...]
    address: str | None
    commit: str
    dirty: bool
    patch: bytes | None = None
    left_out: str | None = None

    @property
    def name(self) -> str:
        """The name of the patch: that of the first package."""
        return self.packages[0]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a lock."""
        found: dict[str, Any] = {
            "packages": list(self.packages),
            "repository": self.address,
            "commit": self.commit,
            "dirty": self.dirty,
        }
        if self.patch is not None:
            found["patch"] = f"patches/{self.name}.patch"
        elif self.left_out is not None:
            found["patch_left_out"] = self.left_out
        return found


def repositories(sources: Mapping[str, Path], *, patches: bool = True) -> list[Repository]:
    """Return the repositories of packages whose code is tracked by git.

    Args:
        sources: package -> the folder or the file of its code.
        patches: whether to keep patches.
    """
    groups: dict[Path, dict[str, Path]] = {}
    for package, source in sources.items():
        real = source.resolve()
        if (top := _top(real)) is not None:
            groups.setdefault(top, {})[package] = real
    found = [_repository(top, code, patches=patches) for top, code in groups.items()]
    return [each for each in found if each is not None]


def _top(source: Path) -> Path | None:
    return next((place for place in source.parents if (place / ".git").exists()), None)


def _repository(top: Path, code: Mapping[str, Path], *, patches: bool) -> Repository | None:
    # An environment may lie in a work tree that ignores it.
    tracked = {
        package: source.relative_to(top).as_posix()
        for package, source in code.items()
        if _git(top, "ls-files", "--", source.relative_to(top).as_posix())
    }
    if not tracked:
        return None
    paths = list(dict.fromkeys(tracked.values()))
    told = _git(top, "status", "--porcelain=v2", "--branch", "--untracked-files=all", "--", *paths)
    lines = (told or b"").decode(errors="replace").splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), None)
    if commit in (None, "(initial)"):
        return None
    assert commit is not None
    address = _git(top, "config", "--get", "remote.origin.url")
    dirty = any(not line.startswith("#") for line in lines)
    patch, left_out = _patch(top, paths) if dirty and patches else (None, None)
    return Repository(
        packages=tuple(tracked),
        address=concealed(address.decode(errors="replace").strip()) if address else None,
        commit=commit,
        dirty=dirty,
        patch=patch,
        left_out=left_out,
    )


def _patch(top: Path, paths: list[str]) -> tuple[bytes | None, str | None]:
    """Return the difference to the commit, with new files, and why it is left out."""
    with tempfile.TemporaryDirectory() as folder:
        index, objects = Path(folder, "index"), Path(folder, "objects")
        objects.mkdir()
        own = _path(top, "index"), _path(top, "objects")
        if own[0] is None or own[1] is None:
            return None, "git could not be asked"
        shutil.copy(own[0], index)
        # Neither the index nor the objects of the repository are changed.
        apart = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(own[1]),
        }
        _git(top, "add", "-A", "--", *paths, **apart)
        command = ("diff", "--cached", "--binary", "--no-ext-diff", "--no-textconv", "HEAD")
        found = _git(top, *command, "--", *paths, **apart)
    if found is None:
        return None, "git could not be asked"
    if len(found) > MOST:
        return None, f"it has more than {MOST >> 20} MiB"
    text = found.decode(errors="replace")
    if concealed(text) != text:
        return None, "it holds what looks like a secret"
    return found, None


def _path(top: Path, name: str) -> Path | None:
    told = _git(top, "rev-parse", "--git-path", name)
    return None if told is None else top / os.fsdecode(told.rstrip(b"\n"))


def _git(top: Path, *arguments: str, **extra: str) -> bytes | None:
    try:
        return subprocess.run(
            ["git", "-C", str(top), *arguments],
            capture_output=True,
            timeout=20,
            check=True,
            # Do not take locks: another git process may be using the repository.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"} | extra,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
