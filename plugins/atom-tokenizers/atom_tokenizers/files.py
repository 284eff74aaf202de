"""Write the prepared files into cache folders that several runs may fill at once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from atom.errors import UserError
from atom.io import files as guarded

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

MOST = 256 << 20
"""Maximum bytes of a tokenizer.json; the largest vocabularies need a tenth."""

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"

CONFIG_TEXT = json.dumps(
    {
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    indent=2,
)
"""Content of :data:`TOKENIZER_CONFIG` for tokenizers made by ATOM."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create ``folder`` and let one process at a time into the block.

    The lock only avoids repeated work: :func:`write` is safe without it.
    """
    with _writable(folder):
        guarded.make_folder(folder)
        lock = os.fdopen(guarded.opened(folder / ".lock", os.O_WRONLY | os.O_CREAT), "w")
    with lock:
        # Some network file systems have no locks; there, each process does the work itself.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write ``files`` (name: text) into ``folder``, each atomically."""
    with _writable(folder):
        guarded.make_folder(folder)
        for name, text in files.items():
            guarded.write_text(folder / name, text)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the tokenizer cannot be written to {folder}: {error.strerror}; the environment "
            "variable ATOM_CACHE sets ATOM's cache folder"
        ) from None
