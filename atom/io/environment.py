"""Check the environment variables that ATOM reads, and refuse misspelled or ineffective ones."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping

from atom.errors import UserError

ALLOW, BLOCK = "ATOM_PLUGINS_ALLOW", "ATOM_PLUGINS_BLOCK"
CACHE = "ATOM_CACHE"
JOIN_SECONDS = "ATOM_JOIN_SECONDS"
OBJECT_CACHE_GIB, OBJECT_SECONDS = "ATOM_OBJECT_CACHE_GIB", "ATOM_OBJECT_SECONDS"

VARIABLES = (ALLOW, BLOCK, CACHE, JOIN_SECONDS, OBJECT_CACHE_GIB, OBJECT_SECONDS)
THREADS = "OMP_NUM_THREADS"

_OF_RANKS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|"
    r"(TORCHELASTIC|SLURM|OMPI|PMI|PMIX|MPI)_.*"
)
"""Names of variables that make a process one of several ranks."""

_LISTS = {"PLUGIN", "PLUGINS", "ALLOW", "ALLOWED", "BLOCK", "BLOCKED"}
"""Words in the name of a variable that was probably meant to block plugins."""

_ALIKE = 0.82
"""Similarity above which a name counts as a misspelling; other programs use ATOM_ as well."""


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that resemble ATOM's but are unknown.

    Raises:
        UserError: names the first one, and the most similar valid name.
    """
    for name in sorted(environment):
        if not name.upper().startswith("ATOM_") or name in VARIABLES:
            continue
        close = difflib.get_close_matches(name.upper(), VARIABLES, n=1, cutoff=_ALIKE)
        if not close and _LISTS & set(name.upper().split("_")):
            close = difflib.get_close_matches(name.upper(), (ALLOW, BLOCK), n=1, cutoff=0)
        if close:
            raise UserError(
                f"{name}={environment[name]} in the environment is not a variable of ATOM; did "
                f"you mean {close[0]}? (env -u {name} atom … runs without it)"
            )


def no_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that is no rank, though its parent may be one."""
    return {name: text for name, text in environment.items() if not _OF_RANKS.fullmatch(name)}


def number(name: str, default: float, environment: Mapping[str, str] = os.environ) -> float:
    """Return the positive number that a variable holds, or ``default`` if it is not set.

    Raises:
        UserError: it is no such number.
    """
    text = environment.get(name)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise UserError(
            f"{name}={text} in the environment is not valid", valid="a number greater than 0"
        )
    return found


def check_threads(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a number of threads that OpenMP would ignore in favour of the number of cores.

    Raises:
        UserError: the number is invalid.
    """
    text = environment.get(THREADS, "")
    if text.strip() and not re.fullmatch(r"\s*0*[1-9]\d{0,5}\s*(,\s*0*[1-9]\d{0,5}\s*)*", text):
        raise UserError(
            f"{THREADS}={text} in the environment is no number of threads",
            valid="a whole number "
            f"from 1, or env -u {THREADS} atom train … to share the cores among the ranks",
        )
