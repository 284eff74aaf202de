"""``bpe``: train a byte-level BPE on the run's dataset, once, and cache it.

The same documents and parameters give a byte-identical file, on any number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from atom.errors import UserError
from atom.io.files import read_text
from atom.plugin import Document, PreparedTokenizer, TokenizerContext
from atom_tokenizers.config import Bpe
from atom_tokenizers.files import (
    BOS,
    CONFIG_TEXT,
    EOS,
    MOST,
    TOKENIZER,
    TOKENIZER_CONFIG,
    locked,
    write,
)
from atom_tokenizers.text import well_formed


def prepare(config: Bpe, context: TokenizerContext) -> PreparedTokenizer:
    """Return the trained tokenizer from the cache; train it if it is not there.

    Runs that start at the same time train it once. An unreadable file in the cache is replaced.

    Raises:
        UserError: the text is too small for the vocabulary, or the cache cannot be written.
    """
    folder = context.cache / f"bpe-{_key(config, context.digest)}"
    if not _is_whole(folder, config.vocab_size):
        with locked(folder):
            if not _is_whole(folder, config.vocab_size):
                tokenizer = train(config, context.documents())
                write(folder, {TOKENIZER_CONFIG: CONFIG_TEXT, TOKENIZER: tokenizer.to_str()})
    return PreparedTokenizer(
        vocab_size=config.vocab_size,
        files={name: folder / name for name in (TOKENIZER, TOKENIZER_CONFIG)},
    )


def train(config: Bpe, documents: Iterable[Document]) -> Tokenizer:
    """Train on the first ``config.train_bytes`` of ``documents``.

    Ids 0 and 1 are :data:`BOS` and :data:`EOS`, the next 256 the bytes, the rest the merges in
    the order they were learned.

    Raises:
        UserError: training yields fewer than ``config.vocab_size`` ids.
    """
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(config.train_bytes, documents), trainer)
    reached = tokenizer.get_vocab_size()
    if reached != config.vocab_size:
        raise UserError(
            f"the first {config.train_bytes} bytes of the dataset yield no more than {reached} ids "
            f"with tokenizer.min_frequency={config.min_frequency}",
            valid=f"258 to {reached}, or more text (tokenizer.train_bytes, dataset)",
            key="tokenizer.vocab_size",
            value=config.vocab_size,
        )
    return tokenizer


def _untrained() -> Tokenizer:
    """Return a tokenizer without normalizer or added space, so that decoding restores the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _first(limit: int, documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        data = well_formed(document.text).encode()[:limit]
        yield data.decode(errors="ignore")  # the last character may be incomplete
        limit -= len(data)
        if limit == 0:
            return


def _key(config: Bpe, digest: str) -> str:
    """Return a hash of everything that the trained file depends on."""
    recipe = [
        digest,
        config.model_dump(),
        tokenizers.__version__,
        _untrained().to_str(),
        CONFIG_TEXT,
    ]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _is_whole(folder: Path, vocab_size: int) -> bool:
    try:
        if read_text(folder / TOKENIZER_CONFIG, below=folder.parent) != CONFIG_TEXT:
            return False
        whole = read_text(folder / TOKENIZER, most=MOST, below=folder.parent)
        return Tokenizer.from_str(whole).get_vocab_size() == vocab_size
    except Exception:  # the library raises a bare Exception for a file it cannot read
        return False
