"""Data to train on: the Python standard library, local files, token shards, token files, or the
Hugging Face Hub."""

from collections.abc import Iterator

from atom.plugin import Dataset, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_datasets() -> Iterator[Dataset]:
    yield Dataset(
        name="stdlib",
        summary="the source of Python's standard library: real text on every machine",
        config="atom_datasets.config:Stdlib",
        source="atom_datasets.stdlib:source",
    )
    yield Dataset(
        name="stdlib_chat",
        summary="conversations made from the documentation strings of Python's standard library",
        config="atom_datasets.config:StdlibChat",
        source="atom_datasets.stdlib_chat:source",
    )
    yield Dataset(
        name="stdlib_pairs",
        summary="preferences made from the documentation strings of Python's standard library",
        config="atom_datasets.config:StdlibPairs",
        source="atom_datasets.stdlib_pairs:source",
    )
    yield Dataset(
        name="local",
        summary="files of your own: plain text, JSON lines, WebDataset or Parquet",
        config="atom_datasets.config:Local",
        source="atom_datasets.local:source",
    )
    yield Dataset(
        name="prepared",
        summary="token shards that `atom data prepare` has written",
        config="atom_datasets.config:Prepared",
        source="atom_datasets.prepared:source",
    )
    yield Dataset(
        name="tokens",
        summary="files of token ids: Megatron's .bin and .idx, flat .npy, Parquet of lists",
        config="atom_datasets.config:Tokens",
        source="atom_datasets.tokens:source",
    )
    yield Dataset(
        name="mixture",
        summary="other datasets, mixed by weights that can change from stage to stage",
        config="atom_datasets.mixing.config:MixtureConfig",
        source="atom_datasets.mixing.source:source",
        changed="atom_datasets.mixing.stages:changed",
    )
    yield Dataset(
        name="huggingface",
        summary="a dataset of the Hugging Face Hub, streamed",
        config="atom_datasets.config:HuggingFace",
        source="atom_datasets.huggingface:source",
        changed="atom_datasets.labels:changed",
    )
