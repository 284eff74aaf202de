"""List the commands that a stage can be: what each takes from other stages, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS = "weights"
DATA = "data"
FOLDER = "a folder"


@dataclass(frozen=True)
class Command:
    """A command of ATOM as a stage of a recipe.

    Attributes:
        words: the command line up to the arguments.
        makes: what other stages can take from it: ``weights`` (a run folder), ``data`` (token
            shards), ``a folder``; empty for none.
        takes: what it can take.
        sources: the least and the most number of stages that it takes from.
        out: the option, or the key with ``=``, that names the folder it writes; None if it prints
            a result, which the recipe keeps.
        overridden: whether it takes Hydra overrides.
        resumes: whether the same command continues an interrupted one in its folder.
        step: the option that chooses a checkpoint; None: ``RUN@STEP``.
        fixed: arguments that it always gets.
        options: for a command with overrides, the options that it has besides.
    """

    words: tuple[str, ...]
    makes: str = ""
    takes: tuple[str, ...] = (WEIGHTS,)
    sources: tuple[int, int] = (1, 1)
    out: str | None = None
    overridden: bool = False
    resumes: bool = False
    step: str | None = "--step"
    fixed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def own(self) -> set[str]:
        """Keys and options that the recipe sets, and a declaration must not."""
        fixed = {word.removeprefix("--") for word in self.fixed if word.startswith("--")}
        out = {self.out.removeprefix("--").removesuffix("=")} if self.out else set()
        return fixed | out | {"dry_run", "step"}


MOST = 1000

COMMANDS = {
    "data prepare": Command(
        ("data", "prepare"), makes=DATA, takes=(), sources=(0, 0), out="--out", overridden=True,
        resumes=True, options=("workers", "licence", "origin", "lanes"),
    ),
    "train": Command(
        ("train",), makes=WEIGHTS, takes=(WEIGHTS, DATA), sources=(0, 2), out="run.dir=",
        overridden=True, resumes=True,
    ),
    "average": Command(
        ("average",), makes=WEIGHTS, sources=(1, MOST), out="--out", step=None,
    ),
    "export": Command(("export",), makes=FOLDER, out="--out", fixed=("--to", "hf")),
    "validate": Command(("validate",), fixed=("--json",)),
    "eval": Command(("eval",), takes=(WEIGHTS, FOLDER), fixed=("--json",)),
    "generate": Command(("generate",)),
}  # fmt: skip
"""Name -> command."""
