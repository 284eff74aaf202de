"""``hf``: load an existing tokenizer. Its folder is data: no code in it is ever run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from atom.errors import UserError
from atom.io import chat_files, copied_urls, object_cache
from atom.io.files import read_bytes
from atom.io.objects import ObjectError
from atom.io.strangers import real
from atom.io.urls import Place, place
from atom.plugin import PreparedTokenizer, TokenizerContext
from atom_tokenizers.classes import CLASSES, PAIRS, as_class, from_files
from atom_tokenizers.config import HuggingFace
from atom_tokenizers.files import MOST, TOKENIZER, TOKENIZER_CONFIG, write
from atom_tokenizers.tokenizer_config import ROLES, Token, TokenizerConfig, merged
from atom_tokenizers.which_class import BUILDERS, OVERRULED, class_of

SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
MODEL_CONFIG = "config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"

BESIDE = (TOKENIZER_CONFIG, SPECIAL_TOKENS, chat_files.TEMPLATE)
"""Optional files to copy along."""

_OTHERS = (*BESIDE, SPECIAL_TOKENS, ADDED_TOKENS, MODEL_CONFIG)
"""Files that are read where they lie beside the tokenizer."""

_KEY = "tokenizer.path"

_UNSEEN = "\N{SNOWMAN}\U0010fffd\n"

_log = logging.getLogger(__name__)


@copied_urls.in_urls()
def prepare(config: HuggingFace, context: TokenizerContext) -> PreparedTokenizer:
    """Check that the tokenizer loads and encodes any text; return its size and its files.

    The ids are those of ``transformers``' ``AutoTokenizer``. Token definitions from several files
    are merged into two, ``tokenizer.json`` and ``tokenizer_config.json``. The size is the highest
    id plus one.

    Raises:
        UserError: there is no tokenizer at the path, or it cannot be used.
    """
    path = _on_disk(place(config.path, _KEY))
    folder = path if path.is_dir() else path.parent
    _check_links(path, folder)
    beside = {name: folder / name for name in BESIDE if (folder / name).is_file()}
    said = _json(path, beside.get(TOKENIZER_CONFIG))
    special, added = (_json(path, folder / name) for name in (SPECIAL_TOKENS, ADDED_TOKENS))
    settings = merged(said, special, added)
    settings = _of_class(path, settings, _json(path, folder / MODEL_CONFIG))
    with _refused(path, f"{TOKENIZER_CONFIG} cannot be read"):
        named = _named(settings)
    source, before, tokenizer = _tokenizer(path, named, context.cache)
    with _refused(path, "its added tokens cannot be read"):
        _add(tokenizer, named)
    with _refused(path, "the tokenizer cannot read every text"):
        tokenizer.encode(_UNSEEN)
        if not tokenizer.get_vocab():
            raise ValueError("its vocabulary is empty")
    without_added = _size(tokenizer)
    wanted = _add_wanted(tokenizer, config.added_tokens)
    _check_ids(path, tokenizer, named)
    if named.eos_token is None:
        _log.warning(
            "%s has no eos_token (tokenizer_config.json): nothing will mark the end of a document",
            path,
        )
    files = {TOKENIZER: source} | beside
    if tokenizer.to_str() != before or settings != said:
        files |= _written(tokenizer, settings, context.cache)
    return PreparedTokenizer(
        vocab_size=_size(tokenizer),
        files=files,
        without_added=without_added if wanted else None,
    )


def _size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _add_wanted(tokenizer: Tokenizer, wanted: list[str]) -> list[str]:
    """Add special tokens that the tokenizer lacks; return them.

    Raises:
        UserError: a token is a word of the vocabulary, which text needs.
    """
    vocabulary = tokenizer.get_vocab()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in wanted:
        if token in vocabulary and token not in known:
            raise UserError(
                f"{token!r} is a piece of text in this vocabulary",
                valid="special tokens, which no text has",
                key="tokenizer.added_tokens",
            )
    added = [token for token in wanted if token not in known]
    tokenizer.add_special_tokens(
        [Token(content=token, normalized=False, special=True).added() for token in added]
    )
    return added


def _on_disk(given: Place) -> Path:
    """Return the path of a tokenizer; the files of a URL are copied.

    Raises:
        UserError: the store does not answer.
    """
    if isinstance(given, Path):
        return given
    is_file = given.name.endswith(".json")
    names = (TOKENIZER, given.name) if is_file else (TOKENIZER, VOCABULARY, MERGES)
    shared = object_cache.shared()
    try:
        for name in {*names, *_OTHERS}:
            shared.copy_at(given.beside(name) if is_file else given / name, _KEY, MOST)
    except ObjectError as error:
        raise UserError(str(error), key=_KEY, value=str(given)) from None
    return shared.path(given) if is_file else shared.folder(given)


def _check_links(path: Path, folder: Path) -> None:
    """Refuse a folder with links out of it; a file that the user names may be a link."""
    names = (*_OTHERS, VOCABULARY, MERGES)
    try:
        for name in names if path.is_file() else (TOKENIZER, *names):
            real(folder / name, folder)
    except ValueError as error:
        raise UserError(
            f"{error}",
            valid="a folder with the files themselves, or one of Hugging Face's cache",
            key=_KEY,
            value=path,
        ) from None


def _of_class(path: Path, settings: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with the selected class, and the settings that it implies."""
    named = settings.get("tokenizer_class") or model.get("tokenizer_class")
    if not isinstance(named, str | None):
        return settings | {"tokenizer_class": named}
    file = path if path.is_file() else path / TOKENIZER
    found = file.is_file()
    # Code that comes with a tokenizer is not run; then its model's class is not used either.
    kind = model.get("model_type") if "auto_map" not in settings else None
    byte_level = found and b'"ByteLevel"' in read_bytes(file.resolve(), most=MOST)
    name = class_of(named, str(kind) if kind else None, byte_level=byte_level)
    if name is None:
        return settings
    known = CLASSES.get(name.removesuffix("Fast"))
    return (known.roles if known else {}) | settings | {"tokenizer_class": name}


def _tokenizer(path: Path, named: TokenizerConfig, cache: Path) -> tuple[Path, str, Tokenizer]:
    """Return the ``tokenizer.json``, its content, and the tokenizer that its class builds."""
    source = path if path.is_file() else path / TOKENIZER
    if source.is_file():
        with _refused(path, f"{source.name} cannot be read as a tokenizer"):
            tokenizer = Tokenizer.from_file(str(source))
        overruled = str(_json(path, source.parent / MODEL_CONFIG).get("model_type")) in OVERRULED
        apart = f" in a folder without {MODEL_CONFIG}" if overruled else ""
        valid = (
            f"valid: PreTrainedTokenizerFast as tokenizer_class in {TOKENIZER_CONFIG}{apart}, "
            f"if {source.name} is right"
        )
        if named.kind in BUILDERS:
            raise UserError(
                f"its tokenizer_class is {named.tokenizer_class}, which builds a tokenizer that "
                f"ATOM does not know; {valid}",
                key=_KEY,
                value=path,
            )
        if named.kind not in CLASSES:
            return source, tokenizer.to_str(), tokenizer
        with _refused(path, f"{named.tokenizer_class} cannot build a tokenizer from {source.name}"):
            made = as_class(
                named.kind,
                tokenizer,
                prefix_space=named.add_prefix_space,
                legacy=bool(named.legacy),
            )
        if made is None:
            raise UserError(
                f"its tokenizer_class is {named.tokenizer_class}, which splits text differently "
                f"from its {source.name}; {valid}",
                key=_KEY,
                value=path,
            )
        return source, tokenizer.to_str(), made
    vocabulary, merges = path / VOCABULARY, path / MERGES
    if not (vocabulary.is_file() and merges.is_file()):
        problem = "holds no tokenizer" if path.is_dir() else "there is no such folder or file"
        raise UserError(
            f"{problem}",
            valid="a folder with tokenizer.json (transformers' save_pretrained writes "
            "it), or with vocab.json and merges.txt; or a tokenizer.json",
            key=_KEY,
            value=path,
        )
    if named.kind not in PAIRS:
        what = f"{named.tokenizer_class} splits" if named.kind else "an unnamed class splits"
        raise UserError(
            f"vocab.json and merges.txt do not say how {what} text into words",
            valid="a folder "
            "with tokenizer.json (transformers' save_pretrained writes it), or a tokenizer_class "
            f"in {TOKENIZER_CONFIG} of {', '.join(PAIRS)}",
            key=_KEY,
            value=path,
        )
    # torchtitan's reader of the two skips every merge that begins with "#".
    with _refused(path, "vocab.json and merges.txt cannot be read as a tokenizer"):
        tokenizer = from_files(
            named.kind, str(vocabulary), str(merges), prefix_space=named.add_prefix_space
        )
    text = tokenizer.to_str()
    folder = cache / f"hf-{hashlib.sha256(text.encode()).hexdigest()}"
    write(folder, {TOKENIZER: text})
    return folder / TOKENIZER, text, tokenizer


def _add(tokenizer: Tokenizer, named: TokenizerConfig) -> None:
    """Add the tokens that the files name, in ``transformers``' order of ids."""
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    roles = {token.content for token in named.roles().values()}
    for token in [*named.declared().values(), *named.roles().values()]:
        if token.content in there and token.content not in roles:
            continue
        role = token.content in roles
        (tokenizer.add_special_tokens if role or token.special else tokenizer.add_tokens)(
            [token.model_copy(update={"special": role or token.special}).added()]
        )


def _check_ids(path: Path, tokenizer: Tokenizer, named: TokenizerConfig) -> None:
    for token_id, token in named.declared().items():
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise UserError(
                f"its files give {token.content!r} the id {token_id}, and the tokenizer {found}",
                valid="files that agree, as transformers' save_pretrained writes them",
                key=_KEY,
                value=path,
            )


def _written(tokenizer: Tokenizer, settings: dict[str, Any], cache: Path) -> dict[str, Path]:
    """Write the complete tokenizer into two files in the cache."""
    kept = {
        # A role is written as text only: the list describes how the token is found.
        key: value["content"] if key in ROLES and isinstance(value, dict) else value
        for key, value in settings.items()
        if key != "added_tokens"
    }
    kept["added_tokens_decoder"] = {
        str(token_id): {key: getattr(token, key) for key in Token.model_fields}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    content = {TOKENIZER: tokenizer.to_str(), TOKENIZER_CONFIG: json.dumps(kept, indent=2)}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    write(cache / f"hf-{digest}", content)
    return {name: cache / f"hf-{digest}" / name for name in content}


def _json(path: Path, file: Path | None) -> dict[str, Any]:
    """Return the content of a file; empty if there is none."""
    if file is None or not file.is_file():
        return {}
    with _refused(path, f"{file.name} cannot be read"):
        content = json.loads(read_bytes(file.resolve(), most=MOST))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    return content


def _named(settings: dict[str, Any]) -> TokenizerConfig:
    try:
        return TokenizerConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join([*map(str, first["loc"][:1]), first["msg"]])) from None


@contextmanager
def _refused(path: Path, problem: str) -> Iterator[None]:
    """Convert any exception of the block to a :class:`UserError`."""
    try:
        with _without_panics():
            yield
    except BaseException as error:
        # A panic of the library is a BaseException of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{problem}: {reason}", key=_KEY, value=path) from None


@contextmanager
def _without_panics() -> Iterator[None]:
    """Hide the trace of a panic, which Rust writes to the file descriptor."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = not isinstance(error, Exception)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            written.seek(0)
            if not panicked:
                os.write(2, written.read())
