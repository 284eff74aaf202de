"""Make the corpus of the benchmark: text, its tokenizer, and its tokens in three formats.

The text is of Python's standard library: documents are stretches of its files, chosen with a fixed
seed. The tokens are those of ``atom data prepare``, repeated up to the wanted number, as shards of
ATOM, as one flat array (OLMo-core) and as an indexed dataset (Megatron writes that itself).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VOCABULARY = 8192
EOS = "<|end_of_text|>"


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus in a folder."""

    folder: Path

    @property
    def text(self) -> Path:
        return self.folder / "text.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def shards(self) -> Path:
        """Shards of the text."""
        return self.folder / "shards"

    @property
    def repeated(self) -> Path:
        """The same, repeated."""
        return self.folder / "repeated"

    @property
    def flat(self) -> Path:
        return self.folder / "flat.npy"

    @property
    def ends(self) -> Path:
        """The ends of the documents in :attr:`flat`."""
        return self.folder / "ends.npy"

    @property
    def eos(self) -> int:
        tokens = json.loads((self.tokenizer / "tokenizer.json").read_text())["added_tokens"]
        return next(token["id"] for token in tokens if token["content"] == EOS)


def atom(*arguments: object, **variables: str) -> None:
    """Run the ``atom`` command."""
    command = [sys.executable, "-m", "atom", *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


def made(folder: Path, megabytes: int, tokens: int) -> Corpus:
    """Return the corpus in ``folder``; make it if it is not there.

    Args:
        folder: the folder.
        megabytes: the size of the text.
        tokens: the least number of repeated tokens.
    """
    corpus, done = Corpus(folder), folder / "done"
    if done.exists():
        return corpus
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"making a corpus of {megabytes} MB of text ...", flush=True)
    write_text(corpus.text, megabytes * 1_000_000)
    options = ("dataset=local", f"dataset.path={corpus.text}")
    trained = folder / "trained"
    sample = folder / "sample.jsonl"
    write_text(sample, min(megabytes, 4) * 1_000_000)
    atom(
        *("data", "prepare", "dataset=local", f"dataset.path={sample}", "tokenizer=bpe"),
        *(f"tokenizer.vocab_size={VOCABULARY}", "--out", trained),
    )
    corpus.tokenizer.mkdir()
    shutil.copy(trained / "tokenizer" / "tokenizer.json", corpus.tokenizer)
    # All tools end a document with EOS; not all begin one with BOS.
    config = {"eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (corpus.tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    atom(
        *("data", "prepare", *options, "tokenizer=hf", f"tokenizer.path={corpus.tokenizer}"),
        *("--out", corpus.shards),
    )
    repeat(corpus, tokens)
    done.touch()
    return corpus


def write_text(path: Path, size: int) -> None:
    """Write documents of the standard library as JSON lines, ``size`` bytes in all."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    texts = [path.read_text(errors="ignore") for path in files]
    texts = [text for text in texts if len(text) > 2000]
    draw, written, number = random.Random(0), 0, 0
    with path.open("w") as file:
        while written < size:
            text = draw.choice(texts)
            length = min(int(draw.lognormvariate(8, 1)) + 100, 60_000)
            begin = draw.randrange(max(len(text) - length, 1))
            row = {"id": str(number), "text": text[begin : begin + length], "source": "stdlib"}
            written += file.write(json.dumps(row) + "\n")
            number += 1


def repeat(corpus: Corpus, wanted: int) -> None:
    """Write the shards as often as needed for ``wanted`` tokens, and the flat array of all."""
    from atom.data import manifest as manifests
    from atom.data.shards import DOCUMENT

    found = manifests.read(corpus.shards)
    times = -(-wanted // found.tokens)
    shards = list(found.shards) * times
    corpus.repeated.mkdir()
    shutil.copytree(corpus.shards / manifests.TOKENIZER, corpus.repeated / manifests.TOKENIZER)
    ends: list[np.ndarray] = []
    total = 0
    with corpus.flat.open("wb") as flat:
        for number, shard in enumerate(shards):
            for kind in manifests.SUFFIXES:
                before = manifests.name_of(number % len(found.shards), kind)
                shutil.copy(
                    corpus.shards / before, corpus.repeated / manifests.name_of(number, kind)
                )
            tokens = corpus.repeated / manifests.name_of(number, "tokens")
            flat.write(tokens.read_bytes())
            records = np.fromfile(tokens.with_suffix(".documents"), dtype=DOCUMENT)
            ends.append(records["tokens"].astype(np.int64) + total)
            total += shard.tokens
    np.save(corpus.ends, np.concatenate(ends))
    manifest = found.model_copy(
        update={
            "shards": shards,
            "digest": manifests.content_digest(found.dtype, found.tokenizer.digest, shards),
            **{name: times * getattr(found, name) for name in ("documents", "tokens", "bytes")},
        }
    )
    manifest.write(corpus.repeated)
