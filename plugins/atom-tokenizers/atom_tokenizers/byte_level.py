"""``bytes``: use bytes as ids, without preparation.

Training needs no files. They are for readers of an export: ``tokenizers``' byte-level BPE without
merges makes the same ids. In it, 256 and 257 are called BOS and EOS.
"""

from __future__ import annotations

import hashlib
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from atom.plugin import PreparedTokenizer, TokenizerContext
from atom_tokenizers.config import Bytes
from atom_tokenizers.files import BOS, CONFIG_TEXT, EOS, TOKENIZER, TOKENIZER_CONFIG, write


def prepare(config: Bytes, context: TokenizerContext) -> PreparedTokenizer:
    """Return the padded size of the vocabulary, and the files.

    Raises:
        UserError: the cache cannot be written.
    """
    content = {TOKENIZER: described().to_str(), TOKENIZER_CONFIG: CONFIG_TEXT}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = context.cache / f"bytes-{digest}"
    write(folder, content)
    return PreparedTokenizer(
        vocab_size=config.vocab_size, files={name: folder / name for name in content}
    )


def described() -> Tokenizer:
    """Return a tokenizer of the ``tokenizers`` library that makes the same ids."""
    # It maps each byte to a printable character: these to themselves, the others from 256 on.
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    characters = {byte: chr(byte) for byte in themselves}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    vocabulary = {characters[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Without the word pattern: there are no merges within words either.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in (BOS, EOS)])
    return tokenizer
