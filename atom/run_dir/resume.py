"""Decide whether a run can resume from its folder, and with which changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atom.data.order import NEWEST
from atom.data.position import data_step
from atom.errors import UserError
from atom.plugin import Callback, Dataset, Optimizer, Trained
from atom.recipe import settings
from atom.recipe.run import Run
from atom.recipe.run import read as run_of
from atom.registry.opening import Chosen
from atom.run_dir import branch, checkpoint, events, inputs, resume_refusals
from atom.run_dir.branch import Origin
from atom.run_dir.changes import Change, Judge, Kind, changes, is_place
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.inputs import Inputs
from atom.run_dir.resume_refusals import EXCLUDED, SEQUENCES

_POSITION = "dataloader"
_READ = ("dataset", "tokenizer")
_OPEN = ("resolved.", SEQUENCES)


@dataclass(frozen=True)
class Resumption:
    """The checkpoint to resume from, and what has changed since.

    Attributes:
        start: the checkpoint.
        changes: settings that differ.
        contents: component -> how its content differs, in words, if the difference is tolerated.
        unknown: True if the checkpoint does not record its input data.
        anew: why the data begins anew in a branch of another run; empty if it continues.
        forced: changes of the data that ``resume.force`` overrides the refusal of: what was read
            before is not what the run now declares.
        data_begins: the step after which the data of this run has begun anew, or None.
        sources: the sources of the mixture whose positions the checkpoint has, in their order.
        sequences: the sequences of a step of the run that saved it; None if that is not known.
        base: the digest of the weights that its adapters belong to; None without adapters.
    """

    start: Origin
    changes: tuple[Change, ...]
    contents: Mapping[str, str] = field(default_factory=dict)
    unknown: bool = False
    anew: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    data_begins: int | None = None
    sources: tuple[str, ...] = ()
    sequences: int | None = None
    base: str | None = None

    def begins(self, sequences: int) -> int | None:
        """Return :attr:`data_begins` of a run with so many sequences a step, which are known late:
        each has a position of its own, so a branch with another number begins its data anew.
        """
        if self.start.branch and self.sequences not in (None, sequences):
            return self.step
        return self.data_begins

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.start.step


def check(
    folder: Path,
    run: Run,
    read: Inputs | None = None,
    *,
    dataset: Chosen[Dataset] | None = None,
    callbacks: Mapping[str, Chosen[Callback]] | None = None,
    optimizer: Chosen[Optimizer] | None = None,
) -> Resumption | None:
    """Return where the run in ``folder`` resumes, or None if it starts anew.

    Args:
        folder: the run folder, which is not modified.
        run: the run to resume. Before it is resolved, only settings that cannot change are
            compared.
        read: the content of its input data, once known.
        dataset: its dataset, which judges changes of its own parameters.
        callbacks: its callbacks, by name.
        optimizer: its optimizer; None accepts the state of any other one.

    Raises:
        UserError: the checkpoints in the folder belong to a run that this one cannot resume.
    """
    start = branch.origin(folder, run)
    if start is None:
        return None
    resume_refusals.loaded(start.folder, run)
    before = run_of(start.beside(RUN_FILE))
    position = data_step(start.step + 1, events.read(start.folder))
    sources = _sources_read(before, position)
    differing, unknown = _differing(start.beside(inputs.FILE_NAME), read, sources)
    same = frozenset() if read is None or unknown else frozenset(_READ) - differing.keys()
    found = changes(
        before.model_dump(mode="json"),
        run.model_dump(mode="json"),
        same=same,
        judge=_first(
            _judge(dataset, before, run, position),
            _judge_callbacks(callbacks or {}, before),
            _judge_base(before, run),
        ),
    )
    if run.resolved is None:
        # Settings that are resolved later, and the content of locations, can still agree.
        found = [c for c in found if c.kind == "refused" and not c.key.startswith(_OPEN)]
        found = [c for c in found if not is_place(c.key)]
    resolved = before.resolved
    anew: tuple[str, ...] = ()
    begins = resolved.data_begins if resolved is not None else None
    if start.branch:
        _check_steps(start, run)
        anew, found, differing = _branched(found, differing)
    if not anew and _is_data_excluded(before, run):
        anew = (f"{EXCLUDED}=[{_POSITION}]",)
    if anew:
        begins = start.step
    for change in found:
        resume_refusals.change(change, start, run, optimizer)
    if not run.resume.force:
        for name, words in differing.items():
            resume_refusals.content(name, words, start.folder, start.step, run)
    mixture = resolved.mixture if resolved is not None and not anew else None
    names = tuple(mixture.names) if mixture is not None else ()
    forced = [str(c) for c in found if c.kind == "refused" and _is_data(c.key)]
    forced += [f"dataset: {differing['dataset']}"] if "dataset" in differing else []
    return Resumption(
        start,
        tuple(found),
        differing,
        unknown,
        anew,
        tuple(forced),
        begins,
        names,
        resolved.global_batch_size if resolved is not None else None,
        resolved.base if resolved is not None else None,
    )


def _is_data_excluded(before: Run, run: Run) -> bool:
    """Return whether the position in the data is not loaded, although it was saved."""
    excluded, others = (
        set(each.checkpoint.engine.get("exclude_from_loading", ())) for each in (run, before)
    )
    # What a run has saved with the same setting is loaded: see the checkpoint manager.
    return _POSITION in excluded and excluded != others


def _branched(
    found: list[Change], differing: dict[str, str]
) -> tuple[tuple[str, ...], list[Change], dict[str, str]]:
    """Return why the data of a branch begins anew, and the changes and contents as they affect it.

    A branch may read other data than the run that it comes from.
    """
    data = [c for c in found if c.kind == "refused" and _is_data(c.key)]
    if any(c.key == "dataset.name" for c in data):  # which brings parameters of its own
        data = [c for c in data if c.key == "dataset.name" or not c.key.startswith("dataset.")]
    anew = [str(c) for c in data]
    anew += [f"dataset: {differing['dataset']}"] if "dataset" in differing and not anew else []
    judged = [
        replace(c, kind="matters")
        if c.kind == "refused" and _is_data(c.key)
        else replace(c, kind="harmless")
        if c.kind == "unused"
        else c
        for c in found
    ]
    return tuple(anew), judged, {k: v for k, v in differing.items() if k != "dataset"}


def _is_data(key: str) -> bool:
    return any(f"{key}.".startswith(f"{each}.") for each in branch.DATA)


def _check_steps(start: Origin, run: Run) -> None:
    if run.training.steps <= start.step:
        raise UserError(
            f"a run from step {start.step} of another has nothing left to train",
            valid=f"more than {start.step}",
            key="training.steps",
            value=run.training.steps,
        )


def with_order(folder: Path, run: Run) -> Run:
    """Return ``run`` with the version of the order of its documents: as set, or that of the run to
    resume in ``folder``, or the newest."""
    if run.data.order is not None:
        return run
    start = branch.origin(folder, run)
    before = run_of(start.beside(RUN_FILE)).data.order if start is not None else None
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
    file = Origin(folder, last).beside(RUN_FILE)
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


def _first(*judges: Judge) -> Judge:
    return lambda key: next(filter(None, (judge(key) for judge in judges)), None)


def _judge_callbacks(after: Mapping[str, Chosen[Callback]], before: Run) -> Judge:
    """Return a judgement of changed callbacks: harmless, if those before and after observe."""
    observers = before.resolved.observers if before.resolved is not None else []
    names: Any = before.callbacks

    def judge(key: str) -> Kind | None:
        section, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if section != Callback.section or (name in names and name not in observers):
            return None
        return "harmless" if name not in after or after[name].declaration.observes else None

    return judge


def _judge_base(before: Run, after: Run) -> Judge:
    """Return a judgement of other initial weights: adapters need them at every start, wherever
    they lie, and are refused if their content differs.
    """
    adapters = before.lora.rank and after.lora.rank
    return lambda key: "harmless" if adapters and key == "checkpoint.initial_load" else None


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
