"""``atom chat``: converse with a model that has a chat template."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from atom.cli import Parser
from atom.cli.generate import add_sampling
from atom.errors import UserError
from atom.io import json_data
from atom.io.chat_files import SETTINGS, TEMPLATE
from atom.io.files import is_regular
from atom.io.process import importing
from atom.run_dir import saved
from atom.run_dir.folder import TOKENIZER

if TYPE_CHECKING:
    from atom.titan.generation.conversation import Conversation

_MOST = 64 << 20
"""Largest accepted tokenizer_config.json, in bytes."""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom chat",
        "Converse with a model that has a chat template, in one process. Each line is a message; "
        "Ctrl-C stops an answer, Ctrl-D ends.",
    )
    parser.add_argument(
        "run", type=Path, help="a run folder, an export, or a folder in Hugging Face's format"
    )
    parser.add_argument("--system", help="the system's message; default: none")
    add_sampling(parser, tokens=None)
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom chat``; return the exit code."""
    options = parser().parse_args(arguments)
    saved.check_folder(options.run, step=options.step, average=options.average)
    _check_template(options.run)
    with importing():
        from atom.titan.boot import boot
        from atom.titan.compat import device

        kind = device.pick(options.device)
        boot(kind)
        from atom.titan.generation import speakers
        from atom.titan.generation.conversation import Conversation
        from atom.titan.generation.sampling import Sampling

    speaker = speakers.load(options.run, step=options.step, kind=kind, average=options.average)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    _converse(
        Conversation(speaker, system=options.system, tokens=options.tokens, sampling=sampling)
    )
    return 0


def _converse(conversation: Conversation) -> None:
    """Answer each line of the input, until it ends."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        import readline  # noqa: F401 (lines can be edited)
    while True:
        try:
            message = input(prompt)
            if message.strip():
                _answer(conversation, message)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            print()


def _answer(conversation: Conversation, message: str) -> None:
    try:
        for piece in conversation.answer(message):
            print(piece, end="", flush=True)
    except UserError as error:
        print(f"atom: {error.sentence()}", file=sys.stderr)
        return
    print(flush=True)
    if conversation.cut_off:
        print("atom: the answer has the maximum number of tokens", file=sys.stderr)


def _check_template(folder: Path) -> None:
    """Refuse a model without a chat template.

    Raises:
        UserError: there is none, or no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder", valid="one of a run")
    place = folder / TOKENIZER if (folder / TOKENIZER).is_dir() else folder
    if is_regular(place / TEMPLATE):
        return
    if is_regular(place / SETTINGS):
        try:
            settings = json_data.read(place / SETTINGS, most=_MOST)
        except ValueError as error:
            raise UserError(f"{place / SETTINGS} cannot be read: {error}") from None
        if settings.get("chat_template"):
            return
    raise UserError(
        f"{folder}: the model has no chat template ({TEMPLATE}, or chat_template in {SETTINGS})",
        valid="a model with one; `atom generate` continues a text",
    )
