"""``atom data``: prepare, inspect, verify and sample token shards, and locate a run's data."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from atom.cli import Parser, data_at
from atom.errors import UserError, nearest, one_line
from atom.io.numbers import human
from atom.io.terminal import Encodable, Styled
from atom.io.urls import place
from atom.redaction import concealed

if TYPE_CHECKING:
    from atom.data.manifest import MadeBy, Manifest

_SHARDS = 10
"""Number of shards that `atom data inspect` lists."""

_LINE_SECONDS = 10
"""Seconds between two lines of progress of `atom data verify`."""

_CHARACTERS = 1000
"""Number of characters that `atom data sample` shows of a document."""

_TOKENS = 4000
"""Number of tokens that it decodes of a document."""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    return Parser(
        "atom data",
        "Tokenize a dataset into token shards (`atom data prepare`), and look at them "
        "(`atom data inspect`, `verify` and `sample`). Show which documents a step of a run trains "
        "on (`atom data at`).",
    )


def prepare_parser() -> Parser:
    """Return the parser of the arguments of ``atom data prepare``."""
    parser = Parser(
        "atom data prepare",
        "Tokenize a dataset once, into shards that `dataset=prepared` trains on. The dataset and "
        "the tokenizer are chosen as for `atom train`: dataset=local dataset.path=FILE "
        "tokenizer=bytes. The same command resumes a preparation that was interrupted.",
    )
    parser.add_argument(
        "--out",
        type=place,
        required=True,
        help="folder for the shards, new or to resume: a path, or a URL such as s3://BUCKET/FOLDER",
    )
    parser.add_argument(
        "--workers", type=_positive, help="number of processes; default: one for each core"
    )
    parser.add_argument(
        "--licence",
        help="licence of the data, a label in the manifest; default: that of the dataset",
    )
    parser.add_argument(
        "--origin", help="origin of the data, a label in the manifest; default: that of the dataset"
    )
    parser.add_argument("--lanes", type=_positive, help="number of shards of a stream; default: 16")
    parser.add_argument(
        "--config-dir", metavar="DIR", help="folder of configuration files, as for `atom train`"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="dataset and tokenizer, as for `atom train`: KEY=VALUE, GROUP=OPTION",
    )
    return parser


def inspect_parser() -> Parser:
    """Return the parser of the arguments of ``atom data inspect``."""
    parser = Parser("atom data inspect", "Show what a folder of token shards contains.")
    parser.add_argument("folder", type=place, help="folder of token shards, or its URL")
    return parser


def verify_parser() -> Parser:
    """Return the parser of the arguments of ``atom data verify``."""
    parser = Parser(
        "atom data verify",
        "Check that every file of a folder of token shards is as its manifest says: sizes, "
        "digests, boundaries of documents, ids within the vocabulary.",
    )
    parser.add_argument("folder", type=place, help="folder of token shards, or its URL")
    return parser


def sample_parser() -> Parser:
    """Return the parser of the arguments of ``atom data sample``."""
    parser = Parser("atom data sample", "Print random documents of a folder of token shards.")
    parser.add_argument("folder", type=place, help="folder of token shards, or its URL")
    parser.add_argument(
        "--documents", type=_positive, default=3, help="number of documents; default: 3"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice; default: 0")
    return parser


SUBCOMMANDS: dict[str, Callable[[], Parser]] = {
    "prepare": prepare_parser,
    "inspect": inspect_parser,
    "verify": verify_parser,
    "sample": sample_parser,
    "at": data_at.parser,
}
"""Name -> the parser of its arguments, for completion."""


def main(arguments: list[str]) -> int:
    """Run ``atom data``; return the exit code."""
    name = arguments[0] if arguments else ""
    if name not in SUBCOMMANDS:
        parser().parse_known_args(arguments)
        raise UserError(f"atom data {name}".rstrip() + f": {nearest(name, SUBCOMMANDS)}")
    if name == "prepare":
        from atom.cli.data_prepare import run

        return run(prepare_parser().parse_intermixed_args(arguments[1:]), arguments)
    options = SUBCOMMANDS[name]().parse_args(arguments[1:])
    commands = {"inspect": _inspect, "verify": _verify, "sample": _sample, "at": data_at.run}
    return commands[name](options)


# ---------------------------------------------------------------------------- inspect


def _inspect(options: argparse.Namespace) -> int:
    from atom.data import manifest as manifests

    found = manifests.read(options.folder)
    for label, value in _rows(found):
        print(f"{label:<12}{one_line(value)[:_CHARACTERS]}")
    print()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("shard", "documents", "tokens", "bytes of text"):
        table.add_column(head, justify="right", no_wrap=True)
    for number, shard in enumerate(found.shards[:_SHARDS]):
        counts = (f"{n:,}" for n in (shard.documents, shard.tokens, shard.bytes))
        table.add_row(f"{number:05}", *counts)
    Styled(Encodable(sys.stdout)).print(table)
    if (more := len(found.shards) - _SHARDS) > 0:
        print(f"and {more:,} more")
    return 0


def _rows(found: Manifest) -> Iterator[tuple[str, str]]:
    tokenizer, source, left_out, made = (
        found.tokenizer,
        found.source,
        found.left_out,
        found.provenance,
    )
    mean = found.tokens / found.documents if found.documents else 0.0
    ratio = found.bytes / found.tokens if found.tokens else 0.0
    yield "documents", f"{found.documents:,}"
    yield "tokens", f"{found.tokens:,} ({mean:,.1f} of a document, {ratio:.2f} bytes of a token)"
    yield "text", f"{found.bytes:,} bytes of UTF-8"
    yield "size", f"{human(found.size)}B in {len(found.shards):,} shards of {found.dtype}"
    yield "tokenizer", _component(tokenizer) + f", {tokenizer.vocab_size:,} ids"
    yield "", f"BOS {_or_none(tokenizer.bos_id)}, EOS {_or_none(tokenizer.eos_id)}"
    yield "source", _component(source)
    if found.lanes is not None:
        yield "", f"a stream, read in {found.lanes} lanes"
    yield "licence", made.licence
    yield "origin", made.origin
    yield "made by", made.command
    yield "", ", ".join([made.date, *(f"{n} {v}" for n, v in made.versions.items())])
    yield (
        "left out",
        (f"empty {left_out.empty:,}, of one token {left_out.short:,}, unreadable {left_out.bad:,}"),
    )
    for reason in left_out.reasons:
        yield "", reason
    yield "digest", found.digest


def _component(made: MadeBy) -> str:
    parameters = " ".join(f"{key}={value}" for key, value in made.parameters.items())
    return f"{made.name} {parameters}".rstrip()[:500] + f" ({made.digest[:12]})"


def _or_none(id: int | None) -> str:
    return "none" if id is None else f"{id:,}"


# ---------------------------------------------------------------------------- verify, sample


def _verify(options: argparse.Namespace) -> int:
    from atom.data.shards import TokenShards
    from atom.data.verifying import verify

    shards = TokenShards(options.folder)
    found = shards.manifest
    size, told = 0, time.monotonic()
    for number, checked in enumerate(verify(shards), 1):
        size += checked
        if time.monotonic() - told >= _LINE_SECONDS:
            told = time.monotonic()
            print(f"{number:,} of {len(found.shards):,} shards", file=sys.stderr, flush=True)
    folder = concealed(str(options.folder))
    print(
        f"{folder}: {len(found.shards):,} shards are whole ({found.documents:,} documents, "
        f"{found.tokens:,} tokens, {human(size)}B)"
    )
    return 0


def _sample(options: argparse.Namespace) -> int:
    import numpy as np

    from atom.data.order import Order
    from atom.data.shards import TokenShards, tokenizer_folder
    from atom.data.verifying import check_tokenizer
    from atom.plugin import Tokenizer
    from atom.registry.host import Host
    from atom.registry.opening import Opener

    shards = TokenShards(options.folder)
    made = shards.manifest.tokenizer
    check_tokenizer(shards)
    chosen = Opener(Host.load()).choose(Tokenizer, made.name, made.parameters, "tokenizer")
    path = tokenizer_folder(options.folder, made.files)
    tokenizer = chosen.call("build").build(tokenizer_path=str(path))
    count = min(options.documents, len(shards))
    for index in Order(len(shards), options.seed, 0).at(np.arange(count)).tolist():
        document = shards[index]
        ids = document.tokens
        text = tokenizer.decode(ids[:_TOKENS].tolist())
        more = " …" if len(text) > _CHARACTERS or len(ids) > _TOKENS else ""
        print(f"--- document {index:,}: {one_line(document.id)[:500]} ({len(ids):,} tokens)")
        print(f"{text[:_CHARACTERS]}{more}\n")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: a whole number from 1")
    return int(text)
