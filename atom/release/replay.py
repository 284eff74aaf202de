"""Train one segment of a release again, in a process of its own: ``python -m atom.release.replay``.

The settings are read as data, under the user's trust lists; nothing of the release is imported. The
launcher, trackers and evaluations of the run are left out: the ranks start on this machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from atom.errors import RunStoppedError, UserError
from atom.io import files, json_data, yaml_data
from atom.io.files import is_regular, read_text, write_json
from atom.io.process import call
from atom.recipe import migrations
from atom.recipe.run import Run, parse
from atom.registry.host import Host
from atom.registry.trust import Trust
from atom.run_dir import checkpoint, inputs
from atom.run_dir.folder import RUN_FILE

_DERIVED = (migrations.KEY, "resolved", "launcher", "evaluation", "profile", "profiler", "sweep")
_QUIET = {
    "metrics": {"enable_wandb": False, "enable_tensorboard": False, "enable_trackio": False},
}


def write_plan(path: Path, **plan: Any) -> None:
    """Write the plan of a replay: see :func:`replay`."""
    write_json(path, plan)


def replay(
    *,
    settings: Path,
    place: Path,
    begin: Path | None,
    step: int,
    until: int,
    branched: bool,
    initial: Path | None,
    initial_step: int,
    overrides: Sequence[str],
) -> None:
    """Train a segment again.

    Args:
        settings: ``run.yaml`` of the start that trained it.
        place: the run folder to write.
        begin: the folder of the released checkpoint it begins from, or None.
        step: its step.
        until: the last step.
        branched: whether another run has saved that checkpoint.
        initial: the folder of the released checkpoint with its initial weights, or None.
        initial_step: its step.
        overrides: ``KEY=VALUE`` that the user has set.
    """
    sections = _sections(settings, overrides)
    sections["run"] = {"dir": str(place)}
    training = sections.setdefault("training", {})
    training["stop_after"] = until
    sections.setdefault("checkpoint", {})["enable"] = True
    sections.setdefault("resume", {})["from"] = None
    if begin is not None:
        home = place.with_name(f"{place.name}-before") if branched else place
        call(partial(_restore, begin, home, step, companions=branched))
        if branched:
            sections["resume"]["from"] = f"{home}@{step}"
    if initial is not None:
        home = place.with_name(f"{place.name}-initial")
        call(partial(_restore, initial, home, initial_step, companions=True))
        sections["checkpoint"]["initial_load"] = str(
            checkpoint.step_folder(home / checkpoint.FOLDER, initial_step)
        )
    run = parse(sections)
    host = Host.load(Trust.of_run(run.plugins))
    _train(run, host, place)


def _train(run: Run, host: Host, place: Path) -> None:
    from atom.launch import start

    try:
        start.train(run, host, place, {})
    except RunStoppedError:
        return


def _restore(released: Path, home: Path, step: int, *, companions: bool) -> None:
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.weights import state

    files.make_folder(home / checkpoint.FOLDER)
    # Without the digests of its data, which lies elsewhere here: they are compared afterwards.
    beside = (RUN_FILE, inputs.FILE_NAME) if companions else (RUN_FILE,)
    for name in beside:
        if is_regular(released / name):
            files.copy(released / name, home / name)
    state.restore(
        released,
        home / checkpoint.FOLDER,
        step,
        tuple(home / name for name in beside if is_regular(home / name)),
    )


def _sections(settings: Path, overrides: Sequence[str]) -> dict[str, Any]:
    text = read_text(settings, most=yaml_data.BYTES)
    sections = yaml_data.load(text, str(settings))
    if not isinstance(sections, dict):
        raise UserError(f"{settings} holds no sections")
    sections = migrations.migrated(sections, str(settings))
    sections = {name: value for name, value in sections.items() if name not in _DERIVED}
    _merge(sections, _QUIET)
    plugins = sections.get("plugins")
    if isinstance(plugins, dict):
        plugins.pop("used", None)
    for override in overrides:
        key, found, value = override.partition("=")
        if not found or not key:
            raise UserError(f"{override} is no setting", valid="KEY=VALUE")
        _set(sections, key.split("."), yaml_data.load(value, key) if value else "")
    return sections


def _set(sections: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        below = sections.setdefault(name, {})
        if not isinstance(below, dict):
            raise UserError(f"{'.'.join(names)}: {name} holds no keys")
        sections = below
    sections[names[-1]] = value


def _merge(sections: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        section = sections.get(name)
        if isinstance(section, dict) and isinstance(value, dict):
            section.update({key: each for key, each in value.items() if key in section})


def logged(plan: Path, log: Path) -> None:
    """Run a plan with the output of this process, a child, in the file ``log``."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    _main(plan)
    sys.stdout.flush()


def _main(plan: Path) -> None:
    told: dict[str, Any] = json_data.read(plan)
    for name in ("settings", "place", "begin", "initial"):
        told[name] = None if told[name] is None else Path(told[name])
    replay(**told)


if __name__ == "__main__":
    from atom.errors import RunError

    try:
        _main(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"atom: {error.sentence()}")
    except RunError as error:
        sys.exit(f"atom: {error}")
