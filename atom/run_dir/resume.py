"""Decide whether a run can resume from its folder, and with which changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atom.data.order import NEWEST
from atom.data.position import data_step
from atom.errors import UserError, shown
from atom.plugin import Dataset, Trained
from atom.recipe import settings
from atom.recipe.run import Run
from atom.recipe.run import read as run_of
from atom.registry.opening import Chosen
from atom.run_dir import checkpoint, events, inputs
from atom.run_dir.changes import Change, Judge, Kind, changes, is_place
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.inputs import Inputs

_MUON = "Muon"
_OPTIMIZER = "optimizer"
_READ = ("dataset", "tokenizer")
_OPEN = ("resolved.", "training.global_batch_size")


@dataclass(frozen=True)
class Resumption:
    """The checkpoint to resume from, and what has changed since.

    Attributes:
        step: the checkpoint's step.
        changes: settings that differ.
        contents: component -> how its content differs, in words, if the difference is tolerated.
        unknown: True if the checkpoint does not record its input data.
    """

    step: int
    changes: tuple[Change, ...]
    contents: Mapping[str, str] = field(default_factory=dict)
    unknown: bool = False


def check(
    folder: Path, run: Run, read: Inputs | None = None, *, dataset: Chosen[Dataset] | None = None
) -> Resumption | None:
    """Return where the run in ``folder`` resumes, or None if it starts anew.

    Args:
        folder: the run folder, which is not modified.
        run: the run to resume. Before it is resolved, only settings that cannot change are
            compared.
        read: the content of its input data, once known.
        dataset: its dataset, which judges changes of its own parameters.

    Raises:
        UserError: the checkpoints in the folder belong to a run that this one cannot resume.
    """
    steps = checkpoint.resumable(folder / checkpoint.FOLDER)
    if not steps:
        return None
    _check_loaded(folder, run)
    before = run_of(_beside(folder, steps[0], RUN_FILE))
    position = data_step(steps[0] + 1, events.read(folder))
    sources = _sources_read(before, position)
    differing, unknown = _differing(_beside(folder, steps[0], inputs.FILE_NAME), read, sources)
    same = frozenset() if read is None or unknown else frozenset(_READ) - differing.keys()
    found = changes(
        before.model_dump(mode="json"),
        run.model_dump(mode="json"),
        same=same,
        judge=_judge(dataset, before, run, position),
    )
    if run.resolved is None:
        # Settings that are resolved later, and the content of locations, can still agree.
        found = [c for c in found if c.kind == "refused" and not c.key.startswith(_OPEN)]
        found = [c for c in found if not is_place(c.key)]
    for change in found:
        _check_change(change, folder, run)
    if not run.resume.force:
        for name, words in differing.items():
            _check_content(name, words, folder, steps[0], run)
    return Resumption(steps[0], tuple(found), differing, unknown)


def with_order(folder: Path, run: Run) -> Run:
    """Return ``run`` with the version of the order of its documents: as set, or that of the run to
    resume in ``folder``, or the newest."""
    if run.data.order is not None:
        return run
    steps = checkpoint.resumable(folder / checkpoint.FOLDER)
    before = run_of(_beside(folder, steps[0], RUN_FILE)).data.order if steps else None
    data = run.data.model_copy(update={"order": before or NEWEST})
    return run.model_copy(update={"data": data})


@dataclass(frozen=True)
class Done:
    """A run with nothing left to train: its last step, and the settings that differ from those it
    was trained with, none of which matters."""

    step: int
    changes: tuple[Change, ...]

    def sentence(self, folder: Path) -> str:
        """Return a sentence that describes it."""
        others = [str(c) for c in self.changes if not c.key.startswith(settings.FOLLOW)]
        but = f"; without effect on it: {', '.join(others)}" if others else ""
        return f"{folder} is finished at step {self.step}: nothing is left to train{but}"


def done(folder: Path, run: Run, steps: int, read: Inputs) -> Done | None:
    """Return where the run in ``folder`` has ended, or None if something is left to train.

    Args:
        folder: the run folder, which is not modified.
        run: the requested run, resolved.
        steps: the last step of the requested run.
        read: the content of its input data.

    Raises:
        UserError: the run has ended, but with other settings or data; or it has left no checkpoint
            to resume from.
    """
    places = folder / checkpoint.FOLDER
    last = checkpoint.last_whole(places)
    file = _beside(folder, last, RUN_FILE)
    if not last:
        last = _ended(folder)
    if last == 0:
        return None
    if last < steps:
        if _ended(folder) and not checkpoint.resumable(places):
            raise UserError(
                f"holds a run that finished at step {last} and left no checkpoint to continue from",
                valid="another run.dir",
                key="run.dir",
                value=folder,
            )
        return None
    before, now = run_of(file), run
    contents, unknown = _differing(file.with_name(inputs.FILE_NAME), read)
    same = frozenset() if unknown else frozenset(_READ) - contents.keys()
    found = changes(before.model_dump(mode="json"), now.model_dump(mode="json"), same=same)
    others = [str(change) for change in found if change.kind in ("matters", "refused")]
    others += [f"{name}: {words}" for name, words in contents.items()]
    if others:
        raise UserError(
            f"holds a run that has reached step {last} with other settings ({'; '.join(others)}), "
            "and nothing is left to train",
            valid=f"another run.dir, or training.steps above {last} to continue",
            key="run.dir",
            value=folder,
        )
    return Done(last, tuple(found))


def _ended(folder: Path) -> int:
    """Return the last step of a finished run; 0 if the run has not finished."""
    ends = (events.FINISHED, events.STARTED, events.CHANGED)
    last = next((e for e in reversed(events.read(folder)) if e["event"] in ends), None)
    if last is None or last["event"] != events.FINISHED:
        return 0
    # An earlier version did not write the step.
    return int(last.get("step") or run_of(folder / RUN_FILE).training.steps)


def _sources_read(run: Run, step: int) -> frozenset[str] | None:
    """Return the sources of a mixture that a run has read by ``step``; None without a mixture."""
    if run.resolved is None or run.resolved.mixture is None:
        return None
    return run.resolved.mixture.read_until(step)


def _judge(dataset: Chosen[Dataset] | None, before: Run, after: Run, step: int) -> Judge:
    """Return the dataset's judgement of changes of its own parameters."""
    resolved = before.resolved
    if (
        dataset is None
        or dataset.declaration.changed is None
        or before.dataset.name != after.dataset.name
        or resolved is None
    ):
        return lambda _: None
    changed = dataset.code("changed")
    sections = [run.dataset.model_dump(mode="json") for run in (before, after)]
    tokens = resolved.global_batch_size * before.training.seq_len
    trained = Trained(steps=step, tokens_per_step=tokens)

    def judge(key: str) -> Kind | None:
        section, _, parameter = key.partition(".")
        if section != Dataset.section or parameter == "name":
            return None
        kind: Kind = changed(parameter, *sections, trained)
        return kind

    return judge


def _differing(
    beside: Path, now: Inputs | None, sources: frozenset[str] | None = None
) -> tuple[dict[str, str], bool]:
    """Return the components with changed content, in words, and whether that is unknown.

    Of a mixture, only ``sources`` are compared.
    """
    before = inputs.read(beside)
    if now is None or before is None:
        return {}, before is None
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in _READ}
    if sources is not None and before.dataset.sources and now.dataset.sources:
        pairs["dataset"] = before.dataset.of(sources), now.dataset.of(sources)
    return {
        name: new.difference(old) for name, (old, new) in pairs.items() if new.digest != old.digest
    }, False


def _check_content(name: str, words: str, folder: Path, step: int, run: Run) -> None:
    raise UserError(
        f"has other content than when the checkpoint of step {step} in {folder} was saved "
        f"({words})",
        valid="that content, another run.dir, or resume.force=true",
        key=name,
        value=getattr(run, name).name,
    )


def _beside(folder: Path, step: int, name: str) -> Path:
    """Return the path of a file of the start that saved a checkpoint.

    The file in the run folder can belong to a start that ended before its first step.
    """
    beside = checkpoint.step_folder(folder / checkpoint.FOLDER, step) / name
    return beside if beside.is_file() or name != RUN_FILE else folder / name


def _check_loaded(folder: Path, run: Run) -> None:
    """Refuse to start anew without notice when checkpoints exist."""
    if not run.checkpoint.enable:
        raise UserError(
            f"{folder} holds checkpoints of a run, which would not be loaded",
            valid="true, or another run.dir",
            key="checkpoint.enable",
            value=False,
        )


def _check_change(change: Change, folder: Path, run: Run) -> None:
    if change.key == "optimizer.name" and _MUON in (change.before, change.after):
        if _OPTIMIZER in run.checkpoint.engine.get("exclude_from_loading", ()):
            return
        raise UserError(
            f"{folder} holds checkpoints with the state of {change.before}, which {change.after} "
            "cannot load",
            valid=f"{change.before}, or checkpoint.exclude_from_loading=[optimizer] to begin "
            "without that state",
            key=change.key,
            value=change.after,
        )
    if run.resume.force or change.kind not in ("refused", "unused"):
        return
    if change.kind == "unused":
        raise UserError(
            f"{folder} holds checkpoints of the run itself, so no initial weights are loaded",
            valid=f"{shown(change.before)}, another run.dir, or resume.force=true",
            key=change.key,
            value=change.after,
        )
    raise UserError(
        f"{folder} holds checkpoints of a run with {change.key}={shown(change.before)}",
        valid="that value, another run.dir, or resume.force=true",
        key=change.key,
        value=change.after,
    )
