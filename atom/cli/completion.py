"""``atom completion``: scripts that let a shell complete ``atom`` commands.

A script asks ``atom completion query`` at every press of the key, with the line so far in
``COMP_LINE`` and the cursor in ``COMP_POINT``, and gets one candidate a line. Words of
``atom train`` are completed by Hydra, which must not see the words in front of them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from atom.cli import COMMANDS, OPTIONS, Parser

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

QUERY = "query"

_PATH = re.compile(r"[^=]*=[./~]")

BASH = r"""
_atom_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" candidate
    local word="${line##*[[:space:]]}"
    # Bash replaces no more than what follows the last of its word breaks (= and : by default).
    local kept="${word%"${word##*["$COMP_WORDBREAKS"]}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        candidate="${candidate#"$kept"}"
        [[ $candidate == *[=./] ]] || candidate+=" "
        COMPREPLY+=("$candidate")
    done < <(
        export COMP_LINE COMP_POINT
        "${COMP_WORDS[0]/#\~/$HOME}" completion query 2>/dev/null
    )
}
complete -o nospace -o bashdefault -o default -F _atom_completion atom
"""

ZSH = r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_atom_completion() {
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" candidate
    local -a finished unfinished
    for candidate in "${(@f)$(
        export COMP_LINE="$line" COMP_POINT="${#line}"
        "${(Q)words[1]/#\~/$HOME}" completion query 2>/dev/null
    )}"; do
        case "$candidate" in
            "") ;;
            *[=./]) unfinished+=("$candidate") ;;
            *) finished+=("$candidate") ;;
        esac
    done
    if (( ${#finished} + ${#unfinished} )); then
        compadd -a finished
        compadd -S '' -a unfinished
    else
        compset -P '*='
        _files
    fi
}
compdef _atom_completion atom
"""

FISH = r"""
function __atom_completion
    set -l command (commandline -opc)[1]
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- "$COMP_LINE")
    $command completion query 2>/dev/null
end
complete -c atom -f -a '(__atom_completion)'
complete -c atom -F -n 'string match -qr "=[./~]" -- (commandline -ct)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom completion",
        "Print a script that lets a shell complete atom commands. "
        "For bash: source <(atom completion bash). For zsh: source <(atom completion zsh). "
        "For fish: atom completion fish | source.",
    )
    parser.add_argument("shell", choices=SCRIPTS, help="the shell to print it for")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom completion``; return the exit code."""
    if arguments == [QUERY]:
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        print(*candidates(line[: int(point)] if point.isdecimal() else line), sep="\n")
        return 0
    print(SCRIPTS[parser().parse_args(arguments).shell].strip())
    return 0


def candidates(line: str) -> list[str]:
    """Return what the last word of ``line``, a command up to the cursor, can become.

    Nothing where a file is wanted: the shell completes those.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    _, *before, word = words if len(words) > 1 else ["atom", ""]
    if not before:
        found = list(OPTIONS if word.startswith("-") else COMMANDS)
    elif before[0] == "train":
        found = _of_train(before[1:], word)
    elif before[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[before[0]][0])
        found = _of_parser(module.parser(), before[1:], word)
    else:
        found = []
    return sorted(candidate for candidate in found if candidate.startswith(word))


def _of_parser(parser: argparse.ArgumentParser, before: list[str], word: str) -> list[str]:
    """Return the options of a parser, or the choices of what it expects at this place."""
    options = {option: action for action in parser._actions for option in action.option_strings}
    last = options.get(before[-1]) if before else None
    if last is not None and last.nargs != 0:
        return list(map(str, last.choices or ()))
    if not word.startswith("-"):
        expected = [action for action in parser._actions if not action.option_strings]
        if expected:
            return [str(choice) for action in expected for choice in action.choices or ()]
    return [option for option in options if option.startswith("--")]


def _of_train(before: list[str], word: str) -> list[str]:
    """Return what Hydra and the config groups of the installed plugins offer after ``train``."""
    from hydra._internal.utils import get_args_parser

    from atom import compose

    options = get_args_parser()
    arguments = options.parse_known_args(before)[0]
    if word.startswith("-") or before[-1:] == ["--config-dir"] or options_value(options, before):
        return _of_parser(options, before, word)
    return of_hydra(compose.config_loader(), compose.CONFIG_NAME, before, word)
