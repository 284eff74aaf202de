"""``hf``: a tokenizer made elsewhere. Its folder is data: nothing in it is ever run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from atom.errors import UserError
from atom.plugin import PreparedTokenizer, TokenizerContext
from atom_tokenizers.config import HuggingFace
from atom_tokenizers.files import TOKENIZER, TOKENIZER_CONFIG, write
from atom_tokenizers.tokenizer_config import TokenizerConfig

BESIDE = (TOKENIZER_CONFIG, "special_tokens_map.json", "chat_template.jinja")
"""Files that are copied along where they exist."""

_UNSEEN = "\N{SNOWMAN}\U0010fffd\n"

_log = logging.getLogger(__name__)


def prepare(config: HuggingFace, context: TokenizerContext) -> PreparedTokenizer:
    """Check that the tokenizer loads and reads any text; return its size and its files.

    The size is the highest id plus one, counting the tokens that ``tokenizer_config.json`` adds.

    Raises:
        UserError: there is no tokenizer at the path, or it cannot be used.
    """
    path = config.path.expanduser()
    folder = path if path.is_dir() else path.parent
    beside = {name: folder / name for name in BESIDE if (folder / name).is_file()}
    source = _tokenizer_json(path, context.cache)
    with _refused(path, f"{source.name} cannot be read as a tokenizer"):
        tokenizer = Tokenizer.from_file(str(source))
    with _refused(path, f"{TOKENIZER_CONFIG} cannot be read"):
        named = _named(beside.get(TOKENIZER_CONFIG))
        tokenizer.add_tokens(named.ordinary())
        tokenizer.add_special_tokens(named.special())
    with _refused(path, "the tokenizer cannot read every text"):
        tokenizer.encode(_UNSEEN)
        if not (vocabulary := tokenizer.get_vocab()):
            raise ValueError("its vocabulary is empty")
    if named.eos_token is None:
        _log.warning(
            "%s has no eos_token (tokenizer_config.json): nothing will mark the end of a document",
            path,
        )
    return PreparedTokenizer(
        vocab_size=max(vocabulary.values()) + 1, files={TOKENIZER: source} | beside
    )


def _tokenizer_json(path: Path, cache: Path) -> Path:
    if path.is_file():
        return path
    if (path / TOKENIZER).is_file():
        return path / TOKENIZER
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    if vocabulary.is_file() and merges.is_file():
        return _converted(path, vocabulary, merges, cache)
    problem = "holds no tokenizer" if path.is_dir() else "there is no such folder or file"
    raise UserError(
        f"{problem}; valid: a folder with tokenizer.json (transformers' save_pretrained writes "
        "it), or with vocab.json and merges.txt; or a tokenizer.json",
        key="tokenizer.path",
        value=path,
    )


def _converted(path: Path, vocabulary: Path, merges: Path, cache: Path) -> Path:
    """Write GPT-2's two files as one ``tokenizer.json``, which everything can load.

    torchtitan's own reader of the two skips every merge that begins with ``#``.
    """
    with _refused(path, "vocab.json and merges.txt cannot be read as a tokenizer"):
        tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = tokenizer.to_str()
    folder = cache / f"hf-{hashlib.sha256(text.encode()).hexdigest()}"
    write(folder, {TOKENIZER: text})
    return folder / TOKENIZER


def _named(file: Path | None) -> TokenizerConfig:
    if file is None:
        return TokenizerConfig()
    try:
        return TokenizerConfig.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join([*map(str, first["loc"][:1]), first["msg"]])) from None


@contextmanager
def _refused(path: Path, problem: str) -> Iterator[None]:
    """Turn whatever the block raises into a user's mistake."""
    try:
        yield
    except BaseException as error:
        # A panic of the library is a BaseException of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{problem}: {reason}", key="tokenizer.path", value=path) from None
