"""Pack the code that ran as wheels: ATOM and the plugins of a run, from their installed files."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

import atom
from atom.io.files import read_bytes
from atom.registry.installed import Plugin
from atom.run_dir import provenance

_ATOM = Path(atom.__file__).parent
_TIME = (2020, 1, 1, 0, 0, 0)
_MOST = 64 << 20


def pack(out: Path, package: str, source: Path, beside: dict[str, Path] | None = None) -> str:
    """Write a wheel of an installed package; return its file name.

    The same code gives the same bytes.

    Args:
        out: an existing folder.
        package: the distribution.
        source: the folder of its import package, or its only module.
        beside: further folders: path in the wheel -> folder.
    """
    found = metadata.distribution(package)
    name = found.metadata["Name"].replace("-", "_")
    info = f"{name}-{found.version}.dist-info"
    contents = {f"{source.name}{tail}": path for tail, path in _files(source)}
    for place, folder in (beside or {}).items():
        contents |= {f"{place}{tail}": path for tail, path in _files(folder)}
    texts = {
        f"{info}/METADATA": found.read_text("METADATA") or "",
        f"{info}/entry_points.txt": found.read_text("entry_points.txt") or "",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: atom\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    wheel = f"{name}-{found.version}-py3-none-any.whl"
    record: list[str] = []
    with zipfile.ZipFile(out / wheel, "x", zipfile.ZIP_DEFLATED) as archive:
        for member, path in sorted(contents.items()):
            _add(archive, record, member, read_bytes(path.resolve(), most=_MOST))
        for member, text in sorted(texts.items()):
            if text:
                _add(archive, record, member, text.encode())
        lines = "".join([*record, f"{info}/RECORD,,\n"])
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _TIME), lines)
    return wheel


def code_of_atom() -> tuple[Path, dict[str, Path]]:
    """Return the folder of ATOM's code, and what its wheel has beside it: its config groups."""
    beside = _ATOM.parent / "conf"
    return _ATOM, {} if (_ATOM / "conf").is_dir() or not beside.is_dir() else {"atom/conf": beside}


def differing(lock: dict[str, object], plugins: list[Plugin]) -> list[str]:
    """Return the packages with other code installed than a lock names."""
    code = lock.get("code")
    named = dict(code) if isinstance(code, dict) else {}
    installed = {"atom-train": provenance.digest_of(_ATOM)}
    listed = lock.get("plugins")
    for each in listed if isinstance(listed, list) else ():
        named[str(each.get("package"))] = each.get("sha256")
    installed |= {plugin.package: provenance.sha256(plugin) or "" for plugin in plugins}
    return sorted(name for name, digest in installed.items() if named.get(name) != digest)


def _files(source: Path) -> list[tuple[str, Path]]:
    if not source.is_dir():
        return [("", source)]
    return [(f"/{name}", path) for name, path in provenance.files_of(source)]


def _add(archive: zipfile.ZipFile, record: list[str], member: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(member, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record.append(f"{member},sha256={digest},{len(content)}\n")
