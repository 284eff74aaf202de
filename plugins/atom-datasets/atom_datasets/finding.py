"""Find the files of a dataset's paths, and report what is left out."""

from __future__ import annotations

import errno
import glob
import io
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from atom.errors import UserError
from atom.io.urls import is_url
from atom_datasets import in_store, leading_out

_MOST_EXAMPLES = 3


class Tally:
    """Counts of skipped files by kind, with a few examples of each."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one more."""
        count, examples = self.kinds.get(kind, (0, []))
        if len(examples) < _MOST_EXAMPLES:
            examples.append(example)
        self.kinds[kind] = count + 1, examples

    def phrases(self) -> tuple[str, ...]:
        """Return a phrase for each kind, such as ``empty files: 2 (a.txt, b.txt)``."""
        return tuple(
            f"{kind}: {count:,} ({', '.join(examples)}{', …' if count > len(examples) else ''})"
            for kind, (count, examples) in self.kinds.items()
        )


@dataclass(frozen=True)
class Found:
    """The files of a dataset, each once, and the skipped files of their folders."""

    files: tuple[Path, ...]
    left_out: Tally = field(compare=False)


def find(
    paths: Iterable[str],
    wanted: Callable[[Path], bool] | None,
    format: str,
    links: leading_out.Links,
) -> Found:
    """Return the files of ``paths``: files, folders, glob patterns.

    Args:
        paths: as the user gave them. Objects of a store are copied.
        wanted: whether a file of a folder has the ``format``; None: take all files.
        format: its name.
        links: which links may lead out of a folder.

    Raises:
        UserError: a path matches no file, or a folder cannot be read.
    """
    left_out = Tally()
    found: dict[Path, None] = {}
    for given in paths:
        if is_url(given):
            found.update(dict.fromkeys(in_store.copies(given, wanted, format, left_out.add)))
            continue
        files, nothing = _files(given, left_out)
        if wanted is not None and Path(given).expanduser().is_dir():
            for path in files:
                if not wanted(path):
                    left_out.add(f"files that are not {format}", path.name)
            files = [path for path in files if wanted(path)]
            nothing = f"no file in this folder has a suffix of {format}"
        if not files:
            raise UserError(nothing, key="dataset.path", value=given)
        for path in files:
            if not path.is_file():
                raise UserError(
                    f"{path} is not a regular file, or is a broken link",
                    key="dataset.path",
                )
        if (folder := _folder(given)) is not None:
            for path in leading_out.check(files, folder, links):
                left_out.add("files elsewhere, read through links", path.name)
        found.update(dict.fromkeys(files))
    return Found(_each_once(found, left_out), left_out)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, possibly through links; do not block on a pipe or a device.

    Raises:
        OSError: it is not a regular file, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def walk(
    folder: Path, without: frozenset[str] = frozenset(), left_out: Tally | None = None
) -> list[Path]:
    """Return the files below ``folder``, sorted by their path within it.

    Links to folders are followed, and each folder is read once, however many links lead to it.
    Hidden files and folders, and folders named in ``without``, are left out.

    Raises:
        UserError: a folder cannot be read.
    """
    found: list[Path] = []
    seen = {_identity(folder)}

    def enters(path: Path) -> bool:
        identity = _identity(path)
        new = identity not in seen
        seen.add(identity)
        return new

    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if left_out is not None:
            for name in sorted([*folders, *names]):
                if name.startswith("."):
                    left_out.add("hidden files and folders", name)
        shown = [n for n in folders if not n.startswith(".") and n not in without]
        # A folder before links to it: its files are named by the shorter path.
        shown.sort(key=lambda name: (Path(place, name).is_symlink(), name))
        folders[:] = [name for name in shown if enters(Path(place, name))]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _files(given: str, left_out: Tally) -> tuple[list[Path], str]:
    """Return the files that a path matches, and the error text if there are none."""
    path = Path(given).expanduser()
    if path.is_dir():
        return walk(path, left_out=left_out), "there is no file in this folder"
    if os.path.lexists(path):
        return [path], ""
    if not glob.has_magic(given):
        return [], "there is no such file or folder"
    _check_pattern(str(path))
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 (Path has none for any path)
    if "**" not in given:  # a pattern with ** enters folders itself
        for match in matches:
            if match.is_dir():
                left_out.add("folders that the pattern matches", match.name)
    return [match for match in matches if not match.is_dir()], "no file matches this pattern"


def _folder(given: str) -> Path | None:
    """Return the folder of a path, or of a pattern's fixed prefix; None for a file."""
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    if os.path.lexists(path) or not glob.has_magic(given):
        return None
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def _check_pattern(pattern: str) -> None:
    """Refuse an unreadable folder on the way of a pattern: glob would skip it silently."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)  # noqa: PTH120 (of a pattern)
        for folder in glob.glob(pattern or ".", recursive=True):  # noqa: PTH207 (as above)
            if Path(folder).is_dir() and not os.access(folder, os.R_OK | os.X_OK):
                _refuse(PermissionError(errno.EACCES, "Permission denied", folder))


def _each_once(found: Iterable[Path], left_out: Tally) -> tuple[Path, ...]:
    """Remove duplicates of a file: links to it, and paths through a loop of links."""
    found = tuple(found)
    kept: dict[object, Path] = {}
    for path in sorted(found, key=lambda path: (path.is_symlink(), len(path.parts), str(path))):
        if kept.setdefault(_identity(path), path) is not path:
            left_out.add("further names of the same files", path.name)
    names = set(kept.values())
    return tuple(path for path in found if path in names)


def _identity(path: Path) -> object:
    found = path.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else path.resolve()


def _refuse(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be read: {error.strerror or error}",
        valid="folders that this user may read",
        key="dataset.path",
    )
