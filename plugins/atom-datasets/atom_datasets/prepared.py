"""``prepared``: read token shards that ``atom data prepare`` has written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atom.data.manifest import name_of
from atom.data.shards import TokenShards, open_shards
from atom.errors import UserError
from atom.plugin import Contents, Document
from atom_datasets.config import Prepared


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
        with self._named():
            # Not the open one: the folder may have changed since.
            shards = TokenShards(self._folder)
            shards.check()
        if not shards.manifest.tokens:
            raise self._refusal("has no tokens")
        return shards.manifest.digest

    def parts(self) -> dict[str, str]:
        """Return the digest of each shard's tokens by the name of the file."""
        return {
            name_of(number, "tokens"): shard.sha256[0]
            for number, shard in enumerate(self._shards().manifest.shards)
        }

    def contents(self) -> Contents:
        """Return the number of files and documents, and what training leaves out."""
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
            left_out=tuple(f"{what}: {count:,}" for what, count in counts if count),
        )

    def tokenizer(self) -> str:
        """Return the digest of the tokenizer that the tokens are of."""
        return self._shards().manifest.tokenizer.digest

    def documents(self) -> _Named:
        """Return the documents."""
        return _Named(self._shards(), self)

    @property
    def _folder(self) -> Path:
        return Path(self.path).absolute()

    def _shards(self) -> TokenShards:
        with self._named():
            return open_shards(self._folder)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the key in an error of the shards."""
        try:
            yield
        except UserError as error:
            error.key, error.value = "dataset.path", self.path
            raise

    def _refusal(self, problem: str) -> UserError:
        return UserError(problem, key="dataset.path", value=self.path)


class _Named:
    """The documents of token shards, with errors that name the key."""

    def __init__(self, shards: TokenShards, source: PreparedSource) -> None:
        self._shards = shards
        self._source = source

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Document:
        with self._source._named():
            return self._shards[index]
