"""``prepared``: read token shards that ``atom data prepare`` has written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atom.data.manifest import UNKNOWN, name_of
from atom.data.shards import TokenShards, open_shards
from atom.data.verifying import check
from atom.errors import UserError
from atom.io.urls import Place, place
from atom.plugin import Contents
from atom_datasets.config import Prepared

_KEY = "dataset.path"


def source(config: Prepared) -> PreparedSource:
    """Return the source that ``config`` describes; the folder is opened on first use."""
    return PreparedSource(config.path)


@dataclass(frozen=True)
class PreparedSource:
    """The documents of a folder of token shards, numbered as in the dataset they were made of."""

    path: str

    def check(self) -> str:
        """Return the digest of the content, from the manifest.

        Checks the sizes of the files, and the digests of some: `atom data verify` checks all.

        Raises:
            UserError: the manifest is invalid, or a file is missing, truncated or altered.
        """
        # Not the open one: the folder may have changed since.
        shards = TokenShards(self._folder, _KEY, self.path)
        check(shards)
        if not shards.manifest.tokens:
            raise UserError("has no tokens", key=_KEY, value=self.path)
        return shards.manifest.digest

    def parts(self) -> dict[str, str]:
        """Return the digest of each shard's tokens by the name of the file."""
        return {
            name_of(number, "tokens"): shard.sha256[0]
            for number, shard in enumerate(self._shards().manifest.shards)
        }

    def contents(self) -> Contents:
        """Return the number of files, documents and tokens, and what training leaves out."""
        found = self._shards().manifest
        left_out = found.left_out
        counts = (
            ("documents without text", left_out.empty),
            ("documents of one token", left_out.short),
            ("documents that could not be read", left_out.bad),
        )
        return Contents(
            files=len(found.shards),
            documents=found.documents,
            tokens=found.tokens,
            left_out=tuple(f"{what}: {count:,}" for what, count in counts if count),
            licence=_known(found.provenance.licence),
            origin=_known(found.provenance.origin),
        )

    def tokenizer(self) -> str:
        """Return the digest of the tokenizer that the tokens are of."""
        return self._shards().manifest.tokenizer.digest

    def documents(self) -> TokenShards:
        """Return the documents."""
        return self._shards()

    @property
    def _folder(self) -> Place:
        found = place(self.path, _KEY)
        return found.absolute() if isinstance(found, Path) else found

    def _shards(self) -> TokenShards:
        return open_shards(self._folder, _KEY, self.path)


def _known(label: str) -> str | None:
    return None if label == UNKNOWN else label
