"""Parameters of the datasets."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

Name = Annotated[str, Field(min_length=1)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Folder(_Parameters):
    links: Literal["data", "follow", "refuse"] = Field(
        default="data",
        description="links out of a folder: `data` follows those to files with the name of a data "
        "file, and reports their number; `follow` follows all; `refuse` refuses all",
    )


class _TextFiles(_Parameters):
    max_chars: int = Field(
        default=65536,
        ge=64,
        description="a file of more bytes is split at line ends, so that no document has more "
        "characters",
    )


class Stdlib(_TextFiles):
    """The ``.py``, ``.txt`` and ``.rst`` files of the Python that runs ATOM."""


class StdlibChat(_Parameters):
    """Conversations made from the documentation strings of Python's standard library."""

    longest: int = Field(default=200, ge=20, le=10_000, description="characters of an answer")


class StdlibPairs(_Parameters):
    """Preferences made from the documentation strings of Python's standard library."""

    longest: int = Field(default=200, ge=20, le=10_000, description="characters of an answer")


class Local(_TextFiles, _Folder):
    """Files on this machine, on a disk that all machines see, or in a store."""

    path: Name | Annotated[list[Name], Field(min_length=1)] = Field(
        description="a file, a folder, a glob pattern, or a list of them; paths, or URLs of s3://, "
        "gs://, https://, hf://"
    )
    format: Literal["auto", "text", "jsonl", "webdataset", "parquet"] = Field(
        default="auto", description="format of the files; auto: by their suffix"
    )
    text_field: Name = Field(
        default="text", description="the field of a record, or the column, that holds the text"
    )
    max_bad_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of the documents that may be unreadable (no JSON record, no UTF-8) "
        "and are skipped; 0: the first one stops the run",
    )
    max_bytes: PositiveInt | None = Field(
        default=None,
        description="maximum decompressed bytes of all compressed files together; null: 200 times "
        "their compressed size, and at least 64 MiB",
    )


class Prepared(_Parameters):
    """Token shards of a dataset, and the tokenizer that made them."""

    path: Name = Field(description="a folder that `atom data prepare` has finished, or its URL")


class Tokens(_Folder):
    """Files of token ids that others have written, on this machine or a disk that all see."""

    path: Name | Annotated[list[Name], Field(min_length=1)] = Field(
        description="a file, a folder, a glob pattern, or a list of them, paths or URLs; for "
        "Megatron also the common prefix of its two files on disk"
    )
    format: Literal["auto", "megatron", "npy", "parquet"] = Field(
        default="auto",
        description="format of the files; auto: by their suffix (.idx, .bin, .npy, .parquet)",
    )
    dtype: Literal["uint8", "uint16", "uint32", "uint64", "int32", "int64"] | None = Field(
        default=None, description="type of an id in flat files (npy), which do not say it"
    )
    eos_id: NonNegativeInt | None = Field(
        default=None,
        description="the last id of each document, for flat files (npy) without a .csv.gz file "
        "that says where documents end",
    )
    column: Name = Field(
        default="input_ids", description="the column of Parquet files that holds lists of ids"
    )
    max_bytes: PositiveInt | None = Field(
        default=None,
        description="maximum decompressed bytes of each Parquet or .csv.gz file; null: 200 times "
        "its compressed size, and at least 64 MiB",
    )


class HuggingFace(_Folder):
    """A dataset that ``datasets.load_dataset`` can stream."""

    path: Name = Field(description="the dataset's name on the Hub, such as allenai/c4, or a folder")
    subset: Name | None = Field(
        default=None, description="the subset (configuration); null: the dataset's default"
    )
    data_files: Name | Annotated[list[Name], Field(min_length=1)] | None = Field(
        default=None,
        description="patterns of the files to read, such as data/python/*, in place of a subset; "
        "null: the files of the subset",
    )
    split: Name = Field(default="train", description="the split")
    text_field: Name = Field(default="text", description="the column that holds the text")
    revision: Name | None = Field(
        default=None, description="a branch, tag or commit of the dataset; null: the newest"
    )
    max_bytes: PositiveInt | None = Field(
        default=None,
        description="maximum decompressed bytes of each compressed file; null: 200 times its "
        "compressed size, and at least 64 MiB",
    )
    licence: Name | None = Field(
        default=None,
        description="licence of the data: a label for the header, the report and token shards",
    )
    origin: Name | None = Field(
        default=None,
        description="where the data comes from: a label, as `licence`; null: the dataset on the "
        "Hub and its commit",
    )
