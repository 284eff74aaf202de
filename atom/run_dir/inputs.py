"""Digest the input data of a run; store the digests beside every checkpoint and compare them on
resume."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atom.data.dealing import told
from atom.data.manifest import tokenizer_digest
from atom.errors import UserError
from atom.io import json_data
from atom.io.files import sha256, write_json
from atom.plugin import DocumentSource, PreparedTokenizer

FILE_NAME = "inputs.json"

_MOST_PARTS = 1000
"""Above this number parts are not recorded, because every checkpoint has a copy of the file."""

_MOST_NAMED = 3


@dataclass(frozen=True)
class Content:
    """Digests of one component: ``digest`` covers everything; ``parts`` are digests by name, empty
    if there are too many. ``sources`` are those of a mixture's sources; a part of source NAME is
    ``NAME/PART``.
    """

    digest: str
    parts: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def of(self, sources: Collection[str]) -> Content:
        """Return the content of some sources of a mixture."""
        chosen = {name: self.sources[name] for name in sorted(sources) if name in self.sources}
        parts = {
            name: digest for name, digest in self.parts.items() if name.partition("/")[0] in chosen
        }
        return Content(json.dumps(chosen), parts, chosen)

    def difference(self, before: Content) -> str:
        """Return in words what has changed since ``before``."""
        added = [name for name in self.parts if name not in before.parts]
        gone = [name for name in before.parts if name not in self.parts]
        changed = [
            name
            for name, digest in self.parts.items()
            if name in before.parts and before.parts[name] != digest
        ]
        if not self.parts or not before.parts or not (added or gone or changed):
            return "its content or its order differs"
        kinds = (("changed", changed), ("gone", gone), ("new", added))
        return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds if names)


@dataclass(frozen=True)
class Inputs:
    """The content of the components that a run reads."""

    dataset: Content
    tokenizer: Content

    def write(self, path: Path) -> None:
        """Write the digests as JSON."""
        write_json(path, asdict(self))


def of(dataset: Content, tokenizer: PreparedTokenizer) -> Inputs:
    """Return the inputs of a run.

    Args:
        dataset: the content of the dataset.
        tokenizer: the prepared tokenizer.
    """
    # A plugin is trusted for its files, which can lie in a cache of symbolic links.
    files = {name: sha256(path.resolve()) for name, path in sorted(tokenizer.files.items())}
    identity = tokenizer_digest(tokenizer.vocab_size, files)
    return Inputs(dataset, _content(identity, files))


def content(source: DocumentSource) -> Content:
    """Check a source, and return its content."""
    digest = source.check()
    nothing: Mapping[str, str] = {}
    return _content(digest, told(source, "parts", nothing), told(source, "digests", nothing))


def read(path: Path) -> Inputs | None:
    """Load the recorded inputs; return None if an earlier ATOM recorded none.

    Raises:
        UserError: the file is unreadable.
    """
    try:
        content = json_data.read(path)
        return Inputs(*(_read(content[name]) for name in ("dataset", "tokenizer")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} has no valid digests of the data of the run ({' '.join(str(error).split())})",
            valid="a file that ATOM wrote",
        ) from None


def _read(told: Any) -> Content:
    if not isinstance(told, dict) or not isinstance(told["digest"], str):
        raise ValueError("it holds no digest")
    parts, sources = (_named(told.get(name, {})) for name in ("parts", "sources"))
    return _content(told["digest"], parts, sources)


def _named(digests: Any) -> dict[str, str]:
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise ValueError("it holds no digests by name")
    return digests


def _content(
    digest: str, parts: Mapping[str, str], sources: Mapping[str, str] | None = None
) -> Content:
    return Content(digest, dict(parts) if len(parts) <= _MOST_PARTS else {}, dict(sources or {}))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
