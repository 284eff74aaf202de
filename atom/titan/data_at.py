"""Find the documents that a run trains on in a step, from its declaration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.data.documents import TextEncoder
from atom.data.lanes import ALONE, Lane, Sources
from atom.data.packing import Part
from atom.data.position import sequences_before
from atom.errors import UserError
from atom.plugin import Dataset
from atom.recipe.batches import Batches
from atom.recipe.run import read
from atom.run_dir import checkpoint, events, history, inputs, metrics, mixture
from atom.run_dir.folder import RUN_FILE
from atom.titan.saved_model import Checkpoint, Trained, trained
from atom.titan.trainer_config import data_loader


@dataclass(frozen=True)
class Sequence:
    """A sequence of the global batch of a step.

    Attributes:
        number: its number in the global batch, from 0.
        parts: the parts of documents in it.
        length: its tokens, padding included.
    """

    number: int
    parts: tuple[Part, ...]
    length: int


def data_at(
    folder: Path, step: int, sequences: Iterable[int] | None = None, *, from_start: bool = False
) -> list[Sequence]:
    """Return the sequences of a step.

    Each lane is packed again from the nearest checkpoint before the step, or from the start; of
    prepared data only the lengths of documents are read.

    Args:
        folder: the run folder.
        step: the step, from 1; it may be in the future.
        sequences: the numbers of the sequences in the global batch; None: all.
        from_start: leave checkpoints alone.

    Raises:
        UserError: there are no such step or sequences, or the data is not what the run has read.
    """
    file, last = _declaration(folder, step)
    run = trained(folder, file)
    resolved = run.run.resolved
    assert resolved is not None  # trained() refuses the run otherwise
    if not 1 <= step <= last:
        raise UserError(f"the run has no step {step}", valid=f"1 to {last}", key="--step")
    if step <= (begun := resolved.data_begins or 0):
        raise UserError(
            f"another run has trained step {step}, on other data",
            valid=f"{begun + 1} to {last}",
            key="--step",
        )
    dataset = run.selection[Dataset]
    if dataset.declaration.build is not None:
        raise UserError(
            "the data loader of this dataset does not tell which samples it reads",
            key="dataset.name",
            value=dataset.component.name,
        )
    config = data_loader(run.selection, run.run, run.tokenizer_files)
    _check_content(folder, file, config.source.check())
    reading = config.reading(run.run.training.seq_len)
    sources = Sources(reading)
    happened = events.read(folder)
    size = resolved.global_batch_size
    of = config.batches or Batches((), size)
    wanted = sequences_before(step, happened, of.sequences)
    forced = _forced(happened, step)
    place = None if from_start else _before(run, wanted, step, happened, max(forced, begun), of)
    if place is None and forced > begun:
        raise UserError(
            f"the data was changed by force after step {forced}, and no position in it is known",
            valid="--from-start left out"
            if from_start
            else "a step after a checkpoint that is kept",
            key="--step",
            value=step,
        )
    _check_schedule(run, step, 0 if place is None else _step_of(place[1]))
    begin, cursor = _through(begun, happened, of), 0
    if place is not None:
        begin, saved = place
        cursor = _cursor(saved)
    turns = [divmod(cursor + wanted - begin + i, size) for i in range(of.size(step))]
    readings = {number: turn - (number < cursor) for turn, number in turns}
    chosen = sorted(set(readings if sequences is None else sequences))
    for number in chosen:
        if number not in readings:
            valid = f"0 to {size - 1}" if len(readings) == size else _ranges(sorted(readings))
            raise UserError(f"the step has no sequence {number}", valid=valid, key="--sequence")
    encoder = (config.encoder or TextEncoder)(run.tokenizer())
    found = []
    for number in chosen:
        lane = Lane(number, reading, sources, encoder)
        lane.begin(of.rounds(begun))
        if place is not None:
            names = mixture.saved_sources(saved.place / RUN_FILE) or ALONE
            lane.go_to(saved.read(_key(saved, number)).numpy(), names, begin // size)
        lane.skip(readings[number])
        found.append(Sequence(number, tuple(lane.parts()), reading.seq_len))
    return found


def _through(step: int, happened: list[dict[str, Any]], of: Batches) -> int:
    """Return the sequences that were read when the checkpoint of a step was saved."""
    return sequences_before(step, happened, of.sequences) + of.size(step) if step else 0


def _step_of(saved: Checkpoint) -> int:
    return int(saved.place.name.rpartition("-")[2])


def _cursor(saved: Checkpoint) -> int:
    """Return the first lane after a checkpoint: 0 if it is of a run without a schedule."""
    names = (name for name in saved.tensors if name.rpartition(".")[2] == "cursor")
    name = next(names, None)
    return 0 if name is None else int(saved.read(name))


def _ranges(numbers: list[int]) -> str:
    """Return ``4 to 7, 0 to 1`` for sequences that follow each other."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a} to {b}" if a < b else str(a) for a, b in found)


def _check_schedule(run: Trained, step: int, after: int) -> None:
    """Refuse a step if its position depends on batches of earlier settings."""
    periods = history.periods(run.folder, RUN_FILE)
    files = [p.file for p in periods if p.first <= step and (p.last is None or p.last > after)]
    schedule = run.run.training.batch_schedule
    if any(read(file).training.batch_schedule != schedule for file in files):
        raise UserError(
            f"training.batch_schedule has changed after step {after}, and the position in the data "
            "is known from checkpoints only",
            valid="a step after a checkpoint that is kept, without --from-start",
            key="--step",
            value=step,
        )


def _declaration(folder: Path, step: int) -> tuple[Path, int]:
    """Return the ``run.yaml`` of the start that has trained a step, or will train it; and the last
    step of the run.
    """
    now = folder / RUN_FILE
    if not now.is_file():
        return now, 0
    file = now
    if step <= metrics.last_step(folder / metrics.FILE_NAME):
        for period in history.periods(folder, RUN_FILE):
            if period.first <= step:
                file = period.file
    return file, read(now).training.steps


def _check_content(folder: Path, file: Path, digest: str) -> None:
    """Refuse data that is not what the run has read."""
    recorded = inputs.read(file.with_name(inputs.FILE_NAME))
    if recorded is not None and recorded.dataset.digest != digest:
        raise UserError(
            f"the dataset does not hold what it held when {folder} was trained",
            valid="that content",
            key="dataset",
        )


def _forced(happened: list[dict[str, Any]], step: int) -> int:
    """Return the last checkpoint before a step after which the data was changed by force; 0 if
    there is none.
    """
    found: list[int] = []
    for event in happened:
        if event["event"] == events.RESUMED:
            found = [each for each in found if each <= event["step"]]
        if event["event"] == events.CHANGED:
            found = [each for each in found if each < event["step"]]
            found += [event["step"]] if event.get("forced") else []
    return max((each for each in found if each < step), default=0)


def _before(
    run: Trained, wanted: int, step: int, happened: list[dict[str, Any]], first: int, of: Batches
) -> tuple[int, Checkpoint] | None:
    """Return the newest checkpoint with a position before the sequence ``wanted``, and the number
    of sequences that were read until then; None if there is none from step ``first`` on.
    """
    place = run.folder / checkpoint.FOLDER
    begun = run.run.resolved.data_begins if run.run.resolved is not None else None
    for saved in checkpoint.resumable(place):
        if saved < first or saved == begun:
            continue  # of the data of before
        if saved < step and (begin := _through(saved, happened, of)) <= wanted:
            found = Checkpoint(checkpoint.step_folder(place, saved))
            if any(".lane." in f".{name}" for name in found.tensors):
                return begin, found
    return None


def _key(saved: Checkpoint, number: int) -> str:
    ending = f"lane.{number}"
    for name in saved.tensors:
        if name == ending or name.endswith(f".{ending}"):
            return name
    raise UserError(f"the checkpoint {saved.place} has no position of sequence {number}")
