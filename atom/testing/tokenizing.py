"""Create a tokenizer as a run does: prepare it once, copy its files, build it from the copies."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from atom.plugin import PreparedTokenizer, TokenizerContext
from atom.registry.host import Component
from atom.testing import corpus, isolated
from atom.testing.opened import described, opened

UNKNOWN = ("<unk>", "[UNK]", "<|unk|>", "UNK")
"""Names of the unknown token in common tokenizers. Plain text may yield it."""


def prepare(component: Component, config: BaseModel | None, cache: Path) -> PreparedTokenizer:
    """Prepare on the kit's documents."""
    context = TokenizerContext(
        documents=corpus.documents, digest=f"conformance {corpus.digest()}", cache=cache
    )
    prepared: PreparedTokenizer = opened(component, config).call("prepare", context)
    return prepared


def copied(prepared: PreparedTokenizer, folder: Path) -> Path:
    """Copy the prepared files into ``folder``, as for a run folder."""
    folder.mkdir(parents=True)
    for name, source in prepared.files.items():
        shutil.copyfile(source, folder / name)
    return folder


def build(component: Component, config: BaseModel | None, folder: Path) -> Any:
    """Return torchtitan's tokenizer, built from the files in ``folder``."""
    return opened(component, config).call("build").build(tokenizer_path=str(folder))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of ``text`` without BOS and EOS."""
    ids: list[int] = tokenizer.encode(text, add_bos=False, add_eos=False)
    return ids


@dataclass(frozen=True)
class Specials:
    """The ids that no text may yield, and their spellings if known."""

    ids: dict[int, str | None]

    @property
    def spellings(self) -> list[str]:
        return [spelling for spelling in self.ids.values() if spelling]

    @classmethod
    def of(cls, tokenizer: Any, named: dict[str, int]) -> Specials:
        """Return the special ids of ``tokenizer``: BOS, EOS, padding, those that its author names,
        and those that Hugging Face's library marks as special."""
        ids: dict[int, str | None] = {number: spelling for spelling, number in named.items()}
        library: Any = getattr(tokenizer, "tokenizer", None)
        if hasattr(library, "get_added_tokens_decoder"):
            unknown = {*UNKNOWN, getattr(library.model, "unk_token", None)}
            for number, token in library.get_added_tokens_decoder().items():
                if token.special and token.content not in unknown:
                    ids.setdefault(number, token.content)
        for name in ("bos_id", "eos_id", "pad_id"):
            number = getattr(tokenizer, name, None)
            if number is not None and number not in ids:
                ids[number] = tokenizer.decode([number]) or None
        return cls(ids)


# ---------------------------------------------------------------------------- other processes

_ENCODING = """
import signal
from atom.testing import opened

described, folder, texts = argument
tokenizer = opened.again(*described).call("build").build(tokenizer_path=folder)

def encoded():
    return [tokenizer.encode(text, add_bos=False, add_eos=False) for text in texts]

ids = encoded()
ours, theirs = os.pipe()
if os.fork() == 0:
    signal.alarm(60)  # a lock that a thread of the parent held is never let go here
    with os.fdopen(theirs, "w") as out:
        json.dump(encoded(), out)
    os._exit(0)
os.close(theirs)
with os.fdopen(ours) as pipe:
    forked = pipe.read()
answer([ids, json.loads(forked) if forked else None])
"""

_PREPARING = """
import hashlib
from pathlib import Path
from atom.plugin import TokenizerContext
from atom.testing import corpus, opened

described, cache, count = argument
tokenizer = opened.again(*described)
digest = f"conformance {corpus.digest()}"
pipes = []
for _ in range(count):  # runs that start at once
    ours, theirs = os.pipe()
    if os.fork() == 0:
        context = TokenizerContext(documents=corpus.documents, digest=digest, cache=Path(cache))
        with os.fdopen(theirs, "w") as out:
            prepared = tokenizer.call("prepare", context)
            hashes = {
                name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
                for name, path in prepared.files.items()
            }
            json.dump([prepared.vocab_size, hashes, "torch" in sys.modules], out)
        os._exit(0)
    os.close(theirs)
    pipes.append(ours)
answers = [os.fdopen(pipe).read() for pipe in pipes]
answer([json.loads(given) if given else None for given in answers])
"""


def start_encoding(
    component: Component, config: BaseModel | None, folder: Path, texts: Sequence[str]
) -> subprocess.Popen[str]:
    """Build and encode in another process with another hash seed.

    :func:`isolated.result` returns two lists of ids: that process's, and those of its forked child,
    or None if the child died."""
    argument = [described(component, config), str(folder), list(texts)]
    return isolated.start(_ENCODING, argument, PYTHONHASHSEED="4711", RANK="1", LOCAL_RANK="1")


def start_preparing(
    component: Component, config: BaseModel | None, cache: Path, *, count: int
) -> subprocess.Popen[str]:
    """Prepare in ``count`` processes at once, with one cache.

    :func:`isolated.result` returns a list of (vocabulary size, hash of each file, whether torch was
    imported); None for a process that failed."""
    argument = [described(component, config), str(cache), count]
    return isolated.start(_PREPARING, argument, PYTHONHASHSEED="4711")
