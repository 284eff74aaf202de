"""``bytes``: a vocabulary that needs no preparation."""

from atom.plugin import PreparedTokenizer, TokenizerContext
from atom_tokenizers.config import Bytes


def prepare(config: Bytes, _context: TokenizerContext) -> PreparedTokenizer:
    """Return the padded size of the vocabulary; there are no files."""
    return PreparedTokenizer(vocab_size=config.vocab_size)
