"""``atom completion``: print scripts for the shell completion of ``atom`` commands.

At each completion, a script calls ``atom completion query`` with the line in ``COMP_LINE`` and the
cursor in ``COMP_POINT``, and gets one candidate per line. Arguments of ``atom train`` are completed
by Hydra, which must not see the words before them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
from types import ModuleType

from atom.cli import COMMANDS, OPTIONS, Parser

QUERY = "query"

_NOT_OURS = ("--config-path", "--config-name", "--experimental-rerun", "--shell-completion")
"""Hydra options without a use here: the location of ATOM's own files, pickles, Hydra's scripts."""

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
    parser.add_argument("shell", choices=SCRIPTS, help="the shell")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom completion``; return the exit code."""
    if arguments == [QUERY]:
        line = os.environ.get("COMP_LINE", "")
        point = os.environ.get("COMP_POINT", "")
        for candidate in candidates(line[: int(point)] if point.isdecimal() else line):
            print(candidate)
        return 0
    print(SCRIPTS[parser().parse_args(arguments).shell].strip())
    return 0


def candidates(line: str) -> list[str]:
    """Return the completions of the last word of ``line``, a command up to the cursor.

    Return nothing where a file is expected: the shell completes those.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an unclosed quote
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
        found = _of_command(module, before[1:], word)
    else:
        found = []
    return sorted(candidate for candidate in found if candidate.startswith(word))


def _of_command(module: ModuleType, before: list[str], word: str) -> list[str]:
    """Return the completions from the parser of a command or of its sub-command."""
    subcommands = getattr(module, "SUBCOMMANDS", {})
    if before and before[0] in subcommands:
        return _of_parser(subcommands[before[0]](), before[1:], word)
    found = _of_parser(module.parser(), before, word)
    return found if before else [*subcommands, *found]


def _of_parser(parser: argparse.ArgumentParser, before: list[str], word: str) -> list[str]:
    """Return the options of a parser, or the choices of the argument expected at this position."""
    options = parser._option_string_actions
    expected = [action for action in parser._actions if not action.option_strings]
    option = None
    for given in before:
        if option is not None and option.nargs != 0:
            option = None  # this word was its value
        elif given.startswith("-"):
            option = options.get(given)
        else:
            expected = expected[1:]
    if option is not None and option.nargs != 0:
        return [str(choice) for choice in option.choices or ()]
    name, equals, _ = word.partition("=")
    if equals and name in options:
        return [f"{name}={choice}" for choice in options[name].choices or ()]
    if expected and not word.startswith("-"):
        return [str(choice) for choice in expected[0].choices or ()]
    return [name for name in options if name.startswith("--")]


def _of_train(before: list[str], word: str) -> list[str]:
    """Return Hydra's options, or completions of groups and keys, after ``train``."""
    from atom.compose.internals import get_args_parser

    parser = get_args_parser()
    option = parser._option_string_actions.get(before[-1]) if before else None
    if word.startswith("-") or (option is not None and option.nargs is None):
        return [found for found in _of_parser(parser, before, word) if found not in _NOT_OURS]
    from atom.cli.override_completion import of_overrides

    config_dir = parser.parse_known_args(before)[0].config_dir
    return of_overrides(before, word, config_dir)
