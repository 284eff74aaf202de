"""Release runs: ``atom release RUN … --out DIR``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import files, json_data, new_folder
from atom.io.files import is_regular, write_json, write_text
from atom.recipe.run import Run, read
from atom.registry.host import Host
from atom.registry.installed import Plugin, normalized
from atom.registry.trust import Trust
from atom.release import bundle, cards, documents, facts, signing, verdicts, wheels
from atom.release import form as forms
from atom.release.bundle import Bundle, Saved, Stage
from atom.release.form import Form
from atom.run_dir import branch, checkpoint, claim, evals, events, history, inputs, metrics, starts
from atom.run_dir.folder import LOCK, ORIGINS, RUN_FILE, TOKENIZER, check_run
from atom.watch import record, report

_COPIED = (
    *(RUN_FILE, LOCK, ORIGINS, inputs.FILE_NAME, metrics.FILE_NAME, events.FILE_NAME),
    evals.FILE_NAME,
)
_FOLDERS = (starts.FOLDER, history.FOLDER, TOKENIZER)


@dataclass(frozen=True)
class Released:
    """The result of a release: its folder, its verdicts, and what a person has left to say."""

    folder: Path
    verdicts: verdicts.Verdicts
    left: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class _Trained:
    """A run to release, its steps with checkpoints, and the run it begins from."""

    folder: Path
    run: Run
    steps: list[int]
    name: str = ""
    origin: tuple[str, int] | None = None


def release(
    runs: Sequence[Path],
    out: Path,
    *,
    form: Path | None = None,
    key: Path | None = None,
    public_key: Path | None = None,
    states: str = "all",
) -> Released:
    """Write one folder with everything of some runs that others need.

    Args:
        runs: the run folders, the earliest stage first.
        out: the folder to write; new or empty.
        form: ``release.yaml``, with the words of a person.
        key: the private key to sign with; None for no signature.
        public_key: its public key.
        states: ``all`` for the optimizer's state of all checkpoints, ``ends`` for that of the last
            one of each run.

    Raises:
        UserError: a run cannot be released, and nothing has been written.
    """
    new_folder.check(out)
    if key is not None:
        signing.check(key, public_key)
    told = forms.read(form) if form is not None else Form()
    if not told.name:
        told = told.model_copy(update={"name": out.absolute().name})
    trained = _lineage([_trained(folder) for folder in runs])
    created = datetime.now(UTC).isoformat(timespec="seconds")
    out.rmdir() if out.exists() else None
    with new_folder.filled(out) as place:
        warnings = _code(trained, place / bundle.CODE)
        stages = [_stage(each, place, number, states) for number, each in enumerate(trained, 1)]
        warnings += _weights(trained[-1].folder, place)
        whole = Bundle(place, {}, tuple(stages))
        found = facts.of(whole)
        written = (bundle.CARD, bundle.DATA_CARD)
        result = verdicts.judge(
            found, told, lambda name: name in written or (place / name).exists()
        )
        write_text(place / bundle.FORM, told.text())
        write_text(place / bundle.DATA_CARD, cards.data_card(found, told))
        level = "R0: verify it; R1 and R2: atom reproduce"
        write_text(place / bundle.CARD, cards.model_card(found, told, result, level))
        write_text(place / bundle.OPENNESS, verdicts.framework_file(told.name, result))
        write_json(place / bundle.CROISSANT, documents.croissant(found, told, created))
        write_json(place / bundle.BOM, documents.bill(found, told, created))
        write_json(place / bundle.PROVENANCE, documents.provenance(place, found, created))
        content = {
            "name": told.name,
            "created": created,
            "stages": [_told(each) for each in stages],
            "verdicts": result.to_json(),
        }
        if key is not None and public_key is not None:
            files.copy(public_key, place / signing.PUBLIC)
        bundle.write_manifest(place, content)
        if key is not None and public_key is not None:
            signing.sign(place, key, public_key)
    return Released(out, result, told.left(), warnings)


def _trained(folder: Path) -> _Trained:
    check_run(folder)
    run = read(folder / RUN_FILE)
    if run.resolved is None:
        raise UserError(f"{folder / RUN_FILE} belongs to a run that has not started")
    if (who := claim.holder(folder)) is not None:
        raise UserError(
            f"{folder}: a job is at work in it (process {who.get('pid', '?')})",
            valid="stop it, or wait until it has ended",
        )
    place = folder / str(run.checkpoint.engine.get("folder", checkpoint.FOLDER))
    steps = []
    for step in checkpoint.in_own_format(place):
        saved = checkpoint.step_folder(place, step)
        if reason := checkpoint.broken(saved):
            raise UserError(f"the checkpoint {saved} is damaged: {reason}", valid="remove it")
        steps.append(step)
    if not steps:
        raise UserError(f"{folder} holds no checkpoint", valid="a run with checkpoint.enable=true")
    return _Trained(folder, run, steps)


def _lineage(runs: list[_Trained]) -> list[_Trained]:
    """Name the runs, and find which of them each begins from."""
    found: list[_Trained] = []
    for run in runs:
        if any(run.folder.resolve() == other.folder.resolve() for other in found):
            raise UserError(f"{run.folder} is given twice", valid="each run once")
        name = f"{len(found) + 1}-{re.sub(r'[^A-Za-z0-9._-]', '-', run.folder.absolute().name)}"
        found.append(_Trained(run.folder, run.run, run.steps, name, _origin(run, found)))
    return found


def _origin(run: _Trained, earlier: list[_Trained]) -> tuple[str, int] | None:
    wanted, step = run.run.checkpoint.initial_load.removeprefix("hf:"), None
    if run.run.resume.origin is not None:
        wanted, step = branch.parsed(run.run.resume.origin)
    if not wanted:
        return None
    place = Path(wanted).expanduser().resolve()
    for other in earlier:
        if place.is_relative_to(other.folder.resolve()):
            match = re.fullmatch(r"step-([0-9]{1,15})", place.name)
            return other.name, step or (int(match[1]) if match else other.steps[-1])
    return None


def _stage(run: _Trained, place: Path, number: int, states: str) -> Stage:
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.weights import state

    target = place / bundle.RUNS / run.name
    files.make_folder(target)
    for name in _COPIED:
        if is_regular(run.folder / name):
            files.copy(run.folder / name, target / name, below=run.folder)
    for folder in _FOLDERS:
        for path in sorted((run.folder / folder).rglob("*")):
            if is_regular(path) and not any(part.startswith(".") for part in path.parts[-3:]):
                copy = target / path.relative_to(run.folder)
                files.make_folder(copy.parent)
                files.copy(path, copy, below=run.folder)
    write_text(target / "report.html", report.page(record.load(run.folder)))
    tokens = {row.step: row.tokens_seen for row in metrics.read(run.folder / metrics.FILE_NAME)}
    below = run.folder / str(run.run.checkpoint.engine.get("folder", checkpoint.FOLDER))
    found = []
    for step in run.steps:
        saved = checkpoint.step_folder(below, step)
        seen = tokens.get(step)
        name = f"stage{number}-step{step}" + ("" if seen is None else f"-tokens{_short(seen)}")
        out = place / bundle.CHECKPOINTS / name
        files.make_folder(out)
        partly = states == "ends" and step != run.steps[-1]
        print(f"{run.folder}: checkpoint of step {step:,}", file=sys.stderr)
        state.save(saved, out, weights_only=partly)
        for companion in (RUN_FILE, LOCK, inputs.FILE_NAME, checkpoint.TENSORS):
            if is_regular(saved / companion):
                files.copy(saved / companion, out / companion, below=saved)
        lock = _lock(saved / LOCK)
        whole = not partly and not checkpoint.read_manifest(saved).model_only
        found.append(
            Saved(
                step,
                f"{bundle.CHECKPOINTS}/{name}",
                lock.get("start"),
                int(lock.get("step") or 0),
                whole,
            )
        )
    return Stage(run.name, run.origin, tuple(found))


def _code(runs: Sequence[_Trained], place: Path) -> list[str]:
    """Pack the code of the last run, and say where it differs from the code that ran."""
    run = runs[-1]
    host = Host.load(Trust.of_run(run.run.plugins))
    used = {normalized(name) for name in run.run.plugins.used or ()}
    plugins: dict[str, Plugin] = {
        each.package: each
        for each in host.plugins
        if normalized(each.package) in used and each.source is not None
    }
    files.make_folder(place)
    wheels.pack(place, "atom-train", *wheels.code_of_atom())
    for package, plugin in plugins.items():
        assert plugin.source is not None
        wheels.pack(place, package, plugin.source)
    return [
        f"{package} is installed with other code than {each.folder} ran with, so the release has "
        "other code, too"
        for each in runs
        for package in wheels.differing(_lock(each.folder / LOCK), list(plugins.values()))
    ]


def _weights(run: Path, place: Path) -> list[str]:
    """Write the last weights in Hugging Face's format, where the architecture has one."""
    from atom.titan.weights.export import export

    target = place / ".export"
    try:
        made = export(run, target)
    except UserError as error:
        return [f"no weights in Hugging Face's format: {error.told}"]
    for path in sorted(target.iterdir()):
        if path.name != RUN_FILE:
            path.rename(place / path.name)
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    return [f"Hugging Face's model lacks weights, such as {made.lost[0]}"] if made.lost else []


def _lock(path: Path) -> dict[str, Any]:
    try:
        return json_data.read(path)
    except (OSError, ValueError):
        return {}


def _told(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "origin": list(stage.origin) if stage.origin else None,
        "checkpoints": [vars(each) for each in stage.checkpoints],
    }


def _short(tokens: int) -> str:
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.0f}{unit}"
    return str(tokens)
