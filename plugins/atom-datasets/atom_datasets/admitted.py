"""Restrict the code of ``datasets`` that may read a dataset, and the places it may read from.

``datasets`` has readers that unpickle, and a dataset's card (its README) may name files anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from atom.errors import UserError
from atom_datasets.bounding import entries
from atom_datasets.finding import open_regular
from atom_datasets.patterns import leads_out, parts

if TYPE_CHECKING:
    import datasets

FORMATS = ("arrow", "csv", "json", "parquet", "text", "webdataset")
"""Permitted readers. ``pandas`` unpickles; image and audio readers yield no text."""

_DECODED = ("txt", "text", "transcript", "json", "jsn")
"""Entries of a web dataset that are decoded."""

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_CARD = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_CARD_BYTES = 16 * 2**20


def check_name(path: str) -> None:
    """Refuse a path that is neither a name on the Hub nor a folder:

    ``datasets`` has readers by name.

    Raises:
        UserError: it is neither.
    """
    if not Path(path).expanduser().is_dir() and not _NAME.fullmatch(path):
        raise UserError(
            "is neither a dataset of the Hub nor a folder",
            valid="OWNER/NAME, such as allenai/c4, or a folder that exists",
            key="dataset.path",
            value=path,
        )


def check_card(folder: Path) -> None:
    """Refuse a folder's card that names files elsewhere, before any of them is requested.

    Raises:
        UserError: the card does.
    """
    path = folder / "README.md"
    if not path.is_file():
        return
    with open_regular(path) as file:
        text = file.read(_CARD_BYTES).decode(errors="replace")
    if (found := _CARD.search(text)) is None:
        return
    try:
        card = yaml.load(found[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"{path} begins with YAML that cannot be read", key="dataset.path"
        ) from None
    configs = card.get("configs") if isinstance(card, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        for pattern in _texts([config.get("data_files"), config.get("data_dir")], depth=5):
            if leads_out(pattern):
                raise _outside(pattern, str(path))


def check(builder: datasets.DatasetBuilder, source: str, known: Iterable[str] | None) -> None:
    """Refuse a reader that is not permitted, and files outside the dataset; nothing is read yet.

    Args:
        builder: the builder of ``datasets`` that would read the dataset.
        source: the dataset: a name on the Hub, or a folder.
        known: the files of the folder; None for the Hub.

    Raises:
        UserError: the reader would unpickle, or read files elsewhere.
    """
    *package, format, _ = type(builder).__module__.split(".")
    if package != ["datasets", "packaged_modules"] or format not in FORMATS:
        raise UserError(
            f"would be read as {format}, which is not among the formats that are only data",
            valid=f"{', '.join(FORMATS)}",
            key="dataset.path",
            value=source,
        )
    from datasets import config

    places = (f"hf://datasets/{source}@", f"{config.HF_ENDPOINT}/datasets/{source}/")
    inside = None if known is None else set(known)
    for names in (builder.config.data_files or {}).values():
        for name in names:
            of_hub = name.startswith(places) and ".." not in parts(name)
            if not (of_hub if inside is None else name in inside):
                raise _outside(name, source)
    if format == "webdataset":
        whole: Any = type(builder)
        # The other decoders run torch code or pickles: .pth, .pyd. Undecoded entries stay bytes.
        kept = {name: whole.DECODERS[name] for name in _DECODED if name in whole.DECODERS}

        def pipeline(own: Any, tar: str, files: Any) -> Iterator[dict[str, Any]]:
            # Bound to the class made here, which decodes fewer formats.
            yield from whole._get_pipeline_from_tar.__func__(own, tar, entries(files))

        changed = {"DECODERS": kept, "_get_pipeline_from_tar": classmethod(pipeline)}
        builder.__class__ = type(whole.__name__, (whole,), changed)


def _outside(name: str, where: str) -> UserError:
    return UserError(
        f"{where} names a file that is not in the dataset ({name})",
        valid="files of its own",
        key="dataset.path",
    )


def _texts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _texts(child, depth - 1)
