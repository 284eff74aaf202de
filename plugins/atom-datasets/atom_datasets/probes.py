"""Reproduce the faults of ``datasets`` that this package repairs; True if one is present."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path


def unread_columns_end_a_stream() -> bool:
    return not _reads([{"text": "a", "one": 1}], [{"text": "b", "other": 1}])


def unread_values_end_a_stream() -> bool:
    return not _reads([{"text": "a", "number": 10**30}])


def _reads(*files: list[dict[str, object]]) -> bool:
    """Return whether the texts of JSON lines can be streamed."""
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.jsonl") for number in range(len(files))]
        for path, rows in zip(paths, files, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        names = [str(path) for path in paths]
        try:
            stream = datasets.load_dataset("json", data_files=names, split="train", streaming=True)
            read = [row["text"] for row in stream]
        except (datasets.table.CastError, ValueError):
            return False
    return read == [row["text"] for rows in files for row in rows]


def web_datasets_are_decoded_by_torch() -> bool:
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    return "pth" in WebDataset.DECODERS
