"""Describe a folder of token shards: its manifest, read and written as JSON.

docs/data_format.md specifies the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from atom.errors import UserError
from atom.io import json_data, object_cache, objects
from atom.io.files import NotAFileError, TooLargeError, write_bytes
from atom.io.objects import ObjectError
from atom.io.urls import Place, Url

FILE_NAME = "manifest.json"
TOKENIZER = "tokenizer"
"""Folder of the tokenizer's files."""

FORMAT, SCHEMA = "atom tokens", 1

MOST = 256 << 20
"""Maximum bytes of a manifest; 10¹⁰ documents need 20 MiB."""

MOST_SHARDS = 1_000_000
MOST_COUNT = 1 << 62
UNKNOWN = "unknown"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Model):
    """A shard: its counts, and the size and digest of its files.

    Attributes:
        documents: number of documents.
        tokens: number of tokens.
        bytes: bytes of the documents' text in UTF-8.
        ids_bytes: size of the file of ids.
        sha256: digests of the files ``NNNNN.tokens``, ``NNNNN.documents`` and ``NNNNN.ids``.
    """

    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    ids_bytes: NonNegativeInt
    sha256: Annotated[list[Sha256], Field(min_length=3, max_length=3)]

    def sizes(self, token_bytes: int) -> tuple[int, int, int]:
        """Return the sizes of the three files in bytes."""
        return self.tokens * token_bytes, self.documents * RECORD, self.ids_bytes


SUFFIXES = ("tokens", "documents", "ids")
RECORD = 16
"""Bytes of a record in a file of documents."""


class LeftOut(_Model):
    """Documents that training leaves out.

    Attributes:
        empty: number of documents without text.
        short: number of documents of one token.
        bad: number of unreadable documents that were tolerated.
        reasons: why, for some of the unreadable ones.
    """

    empty: NonNegativeInt = 0
    short: NonNegativeInt = 0
    bad: NonNegativeInt = 0
    reasons: list[str] = []


class MadeBy(_Model):
    """A component that took part: its name and parameters in the run, and a digest."""

    name: str
    parameters: dict[str, Any] = {}
    digest: str


class TokenizerOf(MadeBy):
    """The tokenizer of the tokens.

    Attributes:
        digest: see :func:`tokenizer_digest`.
        vocab_size: ids are below it.
        files: digests of the files in ``tokenizer/`` by name.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document, or None.
    """

    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    files: dict[str, Sha256]
    bos_id: NonNegativeInt | None = None
    eos_id: NonNegativeInt | None = None


class Provenance(_Model):
    """Who made the folder, of what. No digest covers it."""

    licence: str = UNKNOWN
    origin: str = UNKNOWN
    command: str = UNKNOWN
    date: str = UNKNOWN
    versions: dict[str, str] = {}


class Manifest(_Model):
    """The content of ``manifest.json``.

    Attributes:
        digest: digest of the content: see :func:`content_digest`.
        lanes: number of lanes of a stream that became shards; None if documents are numbered as in
            the source.
    """

    format: Literal["atom tokens"] = "atom tokens"
    schema_: Annotated[int, Field(alias="schema")] = SCHEMA
    digest: Sha256
    dtype: Literal["uint16", "uint32"]
    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    left_out: LeftOut
    tokenizer: TokenizerOf
    source: MadeBy
    lanes: NonNegativeInt | None = None
    provenance: Provenance = Provenance()
    shards: Annotated[list[Shard], Field(max_length=MOST_SHARDS)]

    @property
    def token_bytes(self) -> int:
        return TOKEN_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """The size of all shards in bytes."""
        return sum(sum(shard.sizes(self.token_bytes)) for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write the manifest, atomically; it is the last file of a folder to be written."""
        content = self.model_dump(mode="json", by_alias=True)
        shards = ",\n  ".join(json.dumps(shard) for shard in content.pop("shards"))
        head = json.dumps(content, indent=1)[:-2]
        write_bytes(folder / FILE_NAME, f'{head},\n "shards": [\n  {shards}\n ]\n}}\n'.encode())


TOKEN_BYTES = {"uint16": 2, "uint32": 4}


def dtype_of(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the type of the tokens of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def name_of(number: int, kind: str) -> str:
    """Return the name of a shard's file; ``kind`` is one of :data:`SUFFIXES`."""
    return f"{number:05}.{kind}"


def tokenizer_digest(vocab_size: int, files: Mapping[str, str]) -> str:
    """Return the digest that identifies a tokenizer.

    Args:
        vocab_size: number of rows of the embedding.
        files: SHA-256 digests of its files by name.
    """
    whole = json.dumps([vocab_size, dict(sorted(files.items()))])
    return hashlib.sha256(whole.encode()).hexdigest()


def content_digest(dtype: str, tokenizer: str, shards: list[Shard]) -> str:
    """Return the digest of the tokens, the documents and their ids.

    It does not depend on where, when, or from what they were made.
    """
    found = hashlib.sha256(f"{FORMAT} {SCHEMA} {dtype} {tokenizer}\n".encode())
    for shard in shards:
        found.update(f"{shard.documents} {shard.tokens} {' '.join(shard.sha256)}\n".encode())
    return found.hexdigest()


def exists(folder: Place) -> bool:
    """Return whether a folder has a manifest, that is, all of its shards are written.

    Raises:
        ObjectError: the store of the folder does not answer.
    """
    if isinstance(folder, Url):
        return objects.find(folder / FILE_NAME) is not None
    return (folder / FILE_NAME).is_file()


def read(folder: Place) -> Manifest:
    """Read the manifest of a folder, and check that it agrees with itself.

    Raises:
        UserError: there is none, or it is invalid.
    """
    path = folder / FILE_NAME
    try:
        found = _content(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {FILE_NAME}",
            valid="a folder that `atom data prepare` has finished",
        ) from None
    except (NotAFileError, TooLargeError, ObjectError) as error:
        raise UserError(str(error)) from None
    except (OSError, ValueError) as error:
        raise _invalid(path, " ".join(str(error).split())) from None
    schema = found.get("schema")
    if found.get("format") == FORMAT and type(schema) is int and schema > SCHEMA:
        raise UserError(
            f"{path} has the schema {schema}, which a later ATOM writes", valid=f"up to {SCHEMA}"
        )
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _invalid(path, f"{where}: {first['msg']}") from None
    if problem := _problem(manifest):
        raise _invalid(path, problem)
    return manifest


def _content(folder: Place) -> dict[str, Any]:
    if isinstance(folder, Path):
        return json_data.read(folder / FILE_NAME, most=MOST, below=folder)
    url = folder / FILE_NAME
    if (found := objects.find(url)) is None:
        raise FileNotFoundError
    if found.size > MOST:
        raise ObjectError(url, f"has more than {MOST >> 20} MiB")
    # One process of a machine fetches it for all.
    return json_data.read(object_cache.shared().copy(found), most=MOST)


def _problem(manifest: Manifest) -> str | None:
    """Return how a manifest contradicts itself, or None."""
    tokenizer = manifest.tokenizer
    for name in ("documents", "tokens", "bytes"):
        total = sum(getattr(shard, name) for shard in manifest.shards)
        if total != getattr(manifest, name):
            return f"{name} is {getattr(manifest, name)}, and its shards have {total}"
        if total > MOST_COUNT:
            return f"{name} is more than 2**62"
    if manifest.schema_ != SCHEMA:
        return f"there is no schema {manifest.schema_}"
    if manifest.dtype != dtype_of(tokenizer.vocab_size):
        return f"dtype is {manifest.dtype}, and the vocabulary {tokenizer.vocab_size}"
    if not all(map(_is_name, tokenizer.files)):
        return "a file of the tokenizer lies outside of the folder, or has no valid name"
    if tokenizer.digest != tokenizer_digest(tokenizer.vocab_size, tokenizer.files):
        return "the digest of the tokenizer is not that of its files"
    if manifest.digest != content_digest(manifest.dtype, tokenizer.digest, manifest.shards):
        return "digest is not that of its shards"
    return None


def _is_name(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
    return plain and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _invalid(path: Place, problem: str) -> UserError:
    return UserError(f"{path} is no manifest of token shards: {problem}")
