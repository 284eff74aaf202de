"""List the repairs of ``datasets``. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

_PROBES = "atom_datasets.probes"
_MODULES = "datasets.packaged_modules"
_VERSION = "datasets 4.7.0"
_STREAMING = "plugins/atom-datasets/atom_datasets/streaming.py"

CAST = Repair(
    target=f"{_MODULES}.json.json:Json._cast_table",
    reason="A stream reads all columns and wants them to be alike in all files, so that a column "
    "that is not read ends it.",
    version=_VERSION,
    upstream="https://github.com/huggingface/datasets/issues/6162",
    remove_when="A stream of datasets reads the columns that it is asked for.",
    applied="to the builder of a streamed dataset",
    where=_STREAMING,
    sources={
        f"{_MODULES}.json.json:Json._cast_table": "ef0e01dc.1dd6da88",
        f"{_MODULES}.csv.csv:Csv._cast_table": "769c7b0c.919be1d7",
        f"{_MODULES}.parquet.parquet:Parquet._cast_table": "769c7b0c.fe6917b1",
        f"{_MODULES}.text.text:Text._cast_table": "769c7b0c.b41774c1",
    },
    probe=f"{_PROBES}:unread_columns_end_a_stream",
)
TABLES = Repair(
    target=f"{_MODULES}.json.json:Json._generate_tables",
    reason="JSON lines are parsed whole, so that a value that is not read ends the stream, and a "
    "line has no largest size.",
    version=_VERSION,
    upstream="https://github.com/huggingface/datasets/issues/6162",
    remove_when="A stream of datasets reads the columns that it is asked for, within a size.",
    applied="to the builder of a streamed dataset in JSON or text",
    where=_STREAMING,
    sources={
        f"{_MODULES}.json.json:Json._generate_tables": "ca7b4c16.74cd0c80",
        f"{_MODULES}.text.text:Text._generate_tables": "0fa7bf79.fc8f8cbd",
    },
    probe=f"{_PROBES}:unread_values_end_a_stream",
)
DECODERS = Repair(
    target=f"{_MODULES}.webdataset.webdataset:WebDataset.DECODERS",
    reason="A WebDataset's members are decoded by their extension, by the parsers of a dozen "
    "formats, torch.load among them.",
    version=_VERSION,
    upstream="docs/upstream/webdataset-decoders.md",
    remove_when="datasets takes the decoders that its caller allows.",
    applied="to the builder of a WebDataset",
    where="plugins/atom-datasets/atom_datasets/admitted.py",
    sources={
        f"{_MODULES}.webdataset.webdataset:DECODERS": "93ceee03",
        f"{_MODULES}.webdataset.webdataset:WebDataset._get_pipeline_from_tar": "820c79d8.b88ff3bc",
    },
    probe=f"{_PROBES}:web_datasets_are_decoded_by_torch",
)

REPAIRS = (CAST, TABLES, DECODERS)
