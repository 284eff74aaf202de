"""Choose the checkpoints of an average, refuse those of different models, and describe the result.

This imports no torch, so mistakes are refused within a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import atom
from atom.errors import UserError, shown
from atom.io import files
from atom.io.files import is_regular
from atom.recipe.run import Run, read
from atom.run_dir import branch, checkpoint, claim, inputs, saved
from atom.run_dir.changes import changes
from atom.run_dir.folder import AVERAGE, LOCK, ORIGINS, RUN_FILE, TOKENIZER, check_run

_MODEL = ("architecture", "tokenizer", "resolved.vocab_size")
"""Settings that the names, the shapes or the meaning of weights depend on."""

_COMPANIONS = (RUN_FILE, inputs.FILE_NAME)
"""Files of a checkpoint that are no weights."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to average.

    Attributes:
        folder: its run folder.
        step: its step.
        place: its folder.
        weight: its weight in the mean; weights need not add up to 1.
        digest: SHA-256 of its manifest, which has the digests of its files.
        average: the callback whose averaged weights are read; None: the weights.
    """

    folder: Path
    step: int
    place: Path
    weight: float
    digest: str
    average: str | None = None


def choose(
    runs: Sequence[str],
    steps: Sequence[int],
    weights: Sequence[float],
    average: str | None = None,
) -> list[Source]:
    """Return the checkpoints to average.

    Args:
        runs: run folders, each ``RUN`` (its newest checkpoint) or ``RUN@STEP``.
        steps: steps of the only run; empty for one checkpoint of each run.
        weights: a weight for each checkpoint; empty for the same for all.
        average: the callback whose averaged weights to read; None: the weights.

    Raises:
        UserError: there are no two different checkpoints, one is missing or damaged, they are of
            different models, or a job is at work in a run.
    """
    wanted = _wanted(runs, steps, least=2 if average is None else 1)
    if weights and len(weights) != len(wanted):
        raise UserError(
            f"--weights has {len(weights)} numbers for {len(wanted)} checkpoints",
            valid="one for each",
        )
    if weights and not 0 < sum(weights) < math.inf:
        raise UserError("--weights must add up to a finite number above 0")
    found: list[Source] = []
    for (folder, step), weight in zip(wanted, weights or [1.0] * len(wanted), strict=True):
        source = replace(_source(folder, step, weight), average=average)
        _check_new(source, found)
        found.append(source)
    known = _check_tokenizers(found)
    for source in found[1:]:
        # The same files have the same digest, wherever they are.
        _check_settings(found[0], source, tokenizer=not {found[0], source} <= known)
    return found


def _wanted(
    runs: Sequence[str], steps: Sequence[int], *, least: int
) -> list[tuple[Path, int | None]]:
    parsed = [branch.parsed(run) for run in runs]
    if steps:
        if len(runs) > 1 or parsed[0][1] is not None:
            raise UserError("--steps is for one run", valid="RUN@STEP for each of several")
        parsed = [(runs[0], step) for step in steps]
    if len(parsed) < least:
        raise UserError(
            "an average needs two checkpoints or more",
            valid="--steps 100,200 for one run, several runs, or --average CALLBACK",
        )
    return [(Path(name), step) for name, step in parsed]


def _source(folder: Path, step: int | None, weight: float) -> Source:
    check_run(folder)
    run = read(folder / RUN_FILE)
    if run.resolved is None:
        raise UserError(f"{folder / RUN_FILE} belongs to a run that has not started")
    if run.lora.rank:
        raise UserError(
            f"{folder} holds adapters, and the product of two means is not the mean of products",
            valid="runs without lora.rank, or callbacks=ema in the run of the adapters",
        )
    if (who := claim.holder(folder)) is not None:
        raise UserError(
            f"{folder}: a job is at work in it (process {who.get('pid', '?')} on "
            f"{who.get('host', '?')}), and may delete its checkpoints",
            valid="stop it, or wait until it has ended",
        )
    number, place = saved.newest(folder, run, step)
    return Source(folder, number, place, weight, files.sha256(place / checkpoint.MANIFEST))


def _check_new(source: Source, others: Sequence[Source]) -> None:
    """Refuse a checkpoint that is given twice, or that is a copy of another one."""
    digests = _digests(source.place)
    for other in others:
        if source.place.resolve() == other.place.resolve():
            raise UserError(
                f"the checkpoint {source.place} is given twice",
                valid="once, with a larger number in --weights",
            )
        if digests == _digests(other.place):
            raise UserError(
                f"the checkpoints {other.place} and {source.place} are the same: one is a copy",
                valid="one of them, with a larger number in --weights",
            )


def _digests(place: Path) -> dict[str, str]:
    stored = checkpoint.read_manifest(place).files.items()
    return {name: file.sha256 for name, file in stored if name not in _COMPANIONS}


def _check_tokenizers(sources: Sequence[Source]) -> set[Source]:
    """Refuse checkpoints with other files of the tokenizer; return those with known files."""
    digests = {}
    for source in sources:
        content = inputs.read(_beside(source, inputs.FILE_NAME))
        if content is None:
            continue  # saved by an earlier version
        digests[source] = content.tokenizer.digest
        first = next(iter(digests))
        if digests[source] != digests[first]:
            raise UserError(
                f"{source.place} was trained with other files of the tokenizer than {first.place}",
                valid="checkpoints with the same tokenizer",
            )
    return set(digests)


def _check_settings(first: Source, other: Source, *, tokenizer: bool) -> None:
    """Refuse a checkpoint of another architecture or tokenizer than the first one's.

    Args:
        first: the first checkpoint.
        other: another one.
        tokenizer: whether to compare the settings of the tokenizer, too.
    """
    before, after = (_run(each).model_dump(mode="json") for each in (first, other))
    sections = _MODEL if tokenizer else tuple(key for key in _MODEL if key != "tokenizer")
    for change in changes(before, after):
        if any(change.key == key or change.key.startswith(f"{key}.") for key in sections):
            raise UserError(
                f"{other.place} is of another model than {first.place}: {change.key} is "
                f"{shown(change.after)} there and {shown(change.before)} here",
                valid="checkpoints of the same architecture and tokenizer",
            )


def _run(source: Source) -> Run:
    return read(_beside(source, RUN_FILE))


def _beside(source: Source, name: str) -> Path:
    """Return the path of a file of the start that saved a checkpoint."""
    beside = source.place / name
    return beside if is_regular(beside) else source.folder / name


def check_out(out: Path, sources: Sequence[Source]) -> None:
    """Refuse to write the average into one of the runs.

    Raises:
        UserError: with the run.
    """
    for source in sources:
        if out.resolve().is_relative_to(source.folder.resolve()):
            raise UserError(
                f"--out {out} is in the run folder {source.folder}", valid="a folder elsewhere"
            )


def describe(sources: Sequence[Source], step: int, folder: Path) -> None:
    """Write the files of the average's folder other than weights.

    These are the first run's ``run.yaml``, lock and tokenizer, and the record of the checkpoints
    that were averaged.
    """
    first = sources[0].folder
    names = [Path(name) for name in (RUN_FILE, LOCK, ORIGINS, inputs.FILE_NAME)]
    names += [path.relative_to(first) for path in sorted((first / TOKENIZER).glob("*"))]
    for name in names:
        if is_regular(first / name):
            files.make_folder((folder / name).parent)
            files.copy(first / name, folder / name, below=first)
    content = {
        "step": step,
        "checkpoints": [
            {
                "run": str(source.folder.resolve()),
                "step": source.step,
                "manifest_sha256": source.digest,
                "weight": source.weight,
            }
            | ({} if source.average is None else {"average": source.average})
            for source in sources
        ],
        "atom": atom.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files.write_json(folder / AVERAGE, content)
